# SPDX-License-Identifier: GPL-2.0-only
#
# xen.mb.efi: xen.efi rearranged, such that Multiboot1 and Multiboot2 boot
# loaders can load it, too.  Included by arch/x86/Makefile.

NODE ?= node

quiet_cmd_mbefi = MBEFI   $@
cmd_mbefi = $(NODE) $(srctree)/$(src)/efi/xen-mb-efi.mjs $< $@

# The exit status is 1 for older versions; a missing one fails all the same.
mbefi-node = $(call success,$(NODE) -e 'process.exit(+(parseInt(process.versions.node) < 20))')

# Nothing that comes with Xen needs xen.mb.efi.  Where it cannot be made, one
# line says why, no old one stays, and the build goes on.
mbefi-impossible = rm -f $@; echo "$@ generation disabled: $(1)"

rule_mbefi = @$(if $(filter y,$(mbefi-node)), \
    $(echo-cmd) \
    if said=$$($(cmd_mbefi) 2>&1); then \
        [ -z "$$said" ] || echo "$$said"; \
        printf '%s\n' 'cmd_$@ := $(make-cmd)' > $(dot-target).cmd; \
    else \
        $(call mbefi-impossible,$$(echo "$$said" | sed '/: note: /d')); \
    fi, \
    $(call mbefi-impossible,no node >= 20 ($(NODE))))

# Not when efi-y is empty: see there.
$(TARGET): $(efi-y:.efi=.mb.efi)

ifeq ($(XEN_BUILD_PE),y)
$(TARGET).mb.efi: $(TARGET).efi $(src)/efi/xen-mb-efi.mjs FORCE
	$(call if_changed_rule,mbefi)
else
$(TARGET).mb.efi: FORCE
	rm -f $@
endif

# The command that made the one that is there.  Rules.mk reads those of
# $(targets) only, which are all below $(obj).
-include $(wildcard .$(TARGET).mb.efi.cmd)

# The tool writes to a temporary file, which it cannot remove when it is killed.
mb-efi-clean-files := \
    $(objtree)/$(TARGET).mb.efi \
    $(objtree)/$(TARGET).mb.efi.stripped \
    $(objtree)/.xen-mb-efi.*.tmp
