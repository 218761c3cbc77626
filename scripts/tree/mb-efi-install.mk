# SPDX-License-Identifier: GPL-2.0-only
#
# Installs xen.mb.efi beside xen.efi.  Included by xen/Makefile.

NODE ?= node

ifeq ($(SRCARCH),x86)

# The last commands of _install, which sets D and T: nothing that comes with
# Xen is missing because xen.mb.efi cannot be installed.
define install-mb-efi
	if [ -r $(TARGET).mb.efi -a -n '$(EFI_DIR)' ]; then \
		[ -d $(D)$(EFI_DIR) ] || $(INSTALL_DIR) $(D)$(EFI_DIR); \
		$(INSTALL_DATA) $(TARGET).mb.efi $(D)$(EFI_DIR)/$(T)-$(XEN_FULLVERSION).mb.efi; \
		ln -sf $(T)-$(XEN_FULLVERSION).mb.efi $(D)$(EFI_DIR)/$(T)-$(XEN_VERSION).$(XEN_SUBVERSION).mb.efi; \
		ln -sf $(T)-$(XEN_FULLVERSION).mb.efi $(D)$(EFI_DIR)/$(T)-$(XEN_VERSION).mb.efi; \
		ln -sf $(T)-$(XEN_FULLVERSION).mb.efi $(D)$(EFI_DIR)/$(T).mb.efi; \
		if [ -n '$(EFI_MOUNTPOINT)' -a -n '$(EFI_VENDOR)' ]; then \
			$(if $(efi-strip-opt), \
			     $(STRIP) $(efi-strip-opt) -p -o $(TARGET).efi.stripped $(TARGET).efi && \
			     $(NODE) $(srctree)/arch/x86/efi/xen-mb-efi.mjs $(TARGET).efi.stripped $(TARGET).mb.efi.stripped && \
			     $(INSTALL_DATA) $(TARGET).mb.efi.stripped $(D)$(EFI_MOUNTPOINT)/efi/$(EFI_VENDOR)/$(T)-$(XEN_FULLVERSION).mb.efi ||) \
			$(INSTALL_DATA) $(TARGET).mb.efi $(D)$(EFI_MOUNTPOINT)/efi/$(EFI_VENDOR)/$(T)-$(XEN_FULLVERSION).mb.efi; \
		fi; \
	fi
endef

_uninstall: _uninstall-mb-efi

endif

.PHONY: _uninstall-mb-efi
_uninstall-mb-efi: D=$(DESTDIR)
_uninstall-mb-efi: T=$(notdir $(TARGET))
_uninstall-mb-efi:
	rm -f $(D)$(EFI_DIR)/$(T)-$(XEN_FULLVERSION).mb.efi
	rm -f $(D)$(EFI_DIR)/$(T)-$(XEN_VERSION).$(XEN_SUBVERSION).mb.efi
	rm -f $(D)$(EFI_DIR)/$(T)-$(XEN_VERSION).mb.efi
	rm -f $(D)$(EFI_DIR)/$(T).mb.efi
	if [ -n '$(EFI_MOUNTPOINT)' -a -n '$(EFI_VENDOR)' ]; then \
		rm -f $(D)$(EFI_MOUNTPOINT)/efi/$(EFI_VENDOR)/$(T)-$(XEN_FULLVERSION).mb.efi; \
	fi
