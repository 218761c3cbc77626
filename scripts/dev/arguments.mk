# SPDX-License-Identifier: GPL-2.0-only
#
# What make is told: the variables that a command line may have, what holds for those that it does not set, and what is
# refused before anything is built. The Makefile includes this before its first rule.

# Another name is a slip of the keyboard, and would build something else than was meant.
SECTIONS  := CONFIG KERNEL RAMDISK UCODE XSM SBAT
OF_IMAGE  := XEN_EFI OUT RELOC $(SECTIONS) KEY CERT NO_SBAT IMAGE BOOT
VARIABLES := $(OF_IMAGE) NODE NODE_COMPILE_CACHE CI XEN_DEBS XEN TEST NAME ONLY RUNS SECONDS COUNT SEED
SAID      := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $(v))),$(v)))
UNKNOWN   := $(firstword $(filter-out $(VARIABLES) MAKE% SHELL V,$(SAID)))
ifneq ($(UNKNOWN),)
  # Probably the one that has the most pairs of letters in common with it.
  MEANT := $(shell printf '%s\n' $(VARIABLES) | awk -v said=$(call quote,$(UNKNOWN)) ' \
    { n = 0; for (i = 1; i < length(said); i++) n += index($$1, toupper(substr(said, i, 2))) > 0 } \
    n > most { most = n; meant = $$1 } \
    END { print meant }')
  $(error $(UNKNOWN)='$($(UNKNOWN))': Unknown variable$(if $(MEANT),: did you mean $(MEANT)?,; see make help))
endif

# Make alone, with no goal and no variable about an image, makes the sample, in a folder of its own.
ifeq ($(MAKECMDGOALS)$(XEN_EFI)$(filter $(OF_IMAGE),$(SAID)),)
  XEN_EFI := samples/mini-xen/mini-xen.efi
  OUT     := $(OUT)/sample
endif

# Rules and recipes contain OUT as it is.
SPECIAL := & ; | < > ( ) { } [ ] * ? ! ~ $$ % : = \# \ " ' `
ifneq ($(or $(filter-out 1,$(words $(OUT))),$(filter -%,$(OUT)),$(strip $(foreach c,$(SPECIAL),$(findstring $(c),$(OUT))))),)
  $(error OUT='$(OUT)': Cannot build there: needed the name of a folder without spaces, '-' at the start, or any of $(SPECIAL))
endif

# What is made of XEN_EFI, and which of the goals need some of it.
PRODUCTS := $(addprefix $(OUT)/,1-relocated.efi 2-aligned.efi 3-headers.efi verified.txt loaders.txt xen.mb.efi \
  layout.svg layout.html xen.stripped.efi xen.debug xen.unified.efi xen.signed.efi)
BUILDING := $(filter all verify explain layout strip unify sign $(if $(IMAGE),,check-loaders inspect boot) $(PRODUCTS), \
  $(or $(MAKECMDGOALS),all))

# XEN_EFI= begins anew. Without it, every variable that is not set has the value with which something was made last: the
# rules leave these two files, which assign them.
ifneq ($(BUILDING),)
  ifeq ($(XEN_EFI),)
    $(eval $(file < $(OUT)/.made-of))
    $(eval $(file < $(OUT)/.made-with))
    $(if $(XEN_EFI),,$(error $(OUT): Nothing was made there yet: needed XEN_EFI=FILE$(if $(wildcard $(OUT)/sample), (the sample is in OUT=$(OUT)/sample))))
    RECORDED := XEN_EFI
  endif
endif
RELOC ?= move

# From the command line or the record only: an environment has variables of such names for other purposes.
GIVEN := $(strip $(foreach v,$(SECTIONS),$(if $(filter command file,$(firstword $(origin $(v)))),$(if $($(v)),$(v)))))
STRIP := $(firstword $(filter strip,$(MAKECMDGOALS) $(LAST_STRIP)))

# An assignment for those files, as one word of the shell.
HASH   := \#
assign  = $(call quote,$(1) = $(subst $(HASH),\$(HASH),$(subst $$,$$$$,$($(1)))))

asked = $(filter $(1),$(MAKECMDGOALS))

$(if $(filter move keep,$(RELOC)),,$(error RELOC='$(RELOC)': Cannot build so: needed 'move' (.reloc ahead of __init_end) or 'keep' (behind .bss)))
$(if $(call asked,unify),$(if $(GIVEN),,$(error make unify: Cannot add sections: none given, needed CONFIG=, KERNEL=, … or SBAT=)))
$(if $(call asked,sign),$(if $(and $(KEY),$(CERT)),,$(error make sign: Cannot sign: needed KEY=key.pem CERT=cert.pem)))
$(if $(call asked,boot),$(if $(BOOT),,$(error make boot: Cannot boot: needed BOOT=PATH)))
$(if $(call asked,golden-add),$(if $(and $(NAME),$(XEN_EFI)),,$(error make golden-add: Cannot freeze a build: needed NAME=NAME XEN_EFI=FILE)))
$(if $(call asked,install-xen uninstall-xen),$(if $(XEN),,$(error XEN is empty, needed the top of a Xen source tree)))
$(foreach v,$(if $(BUILDING),$(RECORDED) $(GIVEN) $(if $(call asked,sign),KEY CERT)),$(if $(shell test -r $(call path,$($(v))) && echo yes),,$(error $(v)='$($(v))': Cannot read)))
ifneq ($(and $(BUILDING),$(filter $(realpath $(XEN_EFI)),$(realpath $(PRODUCTS)))),)
  $(error XEN_EFI='$(XEN_EFI)': Cannot build from what is built in $(OUT))
endif
