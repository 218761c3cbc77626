# SPDX-License-Identifier: GPL-2.0-only
#
# xen.mb.efi: xen.efi rearranged, such that Multiboot1 and Multiboot2 boot
# loaders can load it, too.  Included by arch/x86/Makefile.

NODE ?= node

quiet_cmd_mbefi = MBEFI   $@
cmd_mbefi = $(NODE) $(srctree)/$(src)/efi/xen-mb-efi.mjs $< $@

# The exit status is 1 for older versions; a missing one fails all the same.
mbefi-node = $(call success,$(NODE) -e 'process.exit(+(parseInt(process.versions.node) < 20))')

ifeq ($(XEN_BUILD_PE),y)

# Not when efi-y is empty: see there.
$(TARGET): $(efi-y:.efi=.mb.efi)

# Only xen.mb.efi needs node: without it, leave out that one file.
$(TARGET).mb.efi: $(TARGET).efi $(src)/efi/xen-mb-efi.mjs
	$(if $(filter y,$(mbefi-node)),$(call cmd,mbefi),@rm -f $@; \
	     echo '$@ generation disabled: no node >= 20 ($(NODE))')

endif

# The tool writes to a temporary file, which a crash may leave behind.
mb-efi-clean-files := \
    $(objtree)/$(TARGET).mb.efi \
    $(objtree)/$(TARGET).mb.efi.stripped \
    $(objtree)/.$(TARGET).mb.efi.*.tmp
