# SPDX-License-Identifier: GPL-2.0-only
#
# The pipeline over xen.efi, one rule per step:
#
#   $(XEN_EFI) -> 1-relocated.efi -> 2-aligned.efi -> 3-headers.efi -> (verify, check-loaders) -> xen.mb.efi, all in $(OUT)
#
# so that a developer can stop after any step (make build/2-aligned.efi) and look at it.

OUT  ?= build
NODE ?= node

export XEN_DEBS CI

# Where node keeps what it made of the scripts: without it, each step of each build strips and compiles them again.
# Node 24 keeps both, node 22 only what it compiled, which gains nothing; node 20 knows no such thing.
export NODE_COMPILE_CACHE ?= $(CURDIR)/build/node-cache

.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

# Any text as one word of the shell; the name of a file as one that no program takes for an option.
quote = '$(subst ','\'',$(1))'
path  = $(call quote,$(if $(filter -%,$(firstword $(1))),./)$(1))

# node from 22.18 on runs the scripts as they are; before that, tsx does, the one package that is needed to run them.
NODE_KIND := $(shell $(NODE) -p 'parseInt(process.versions.node) < 20 ? "old" : process.features.typescript ? "strips" : require("module").register ? "tsx" : "tsx-loader"' 2>/dev/null)
ifeq ($(filter strips tsx tsx-loader,$(NODE_KIND)),)
  $(error $(NODE): Cannot run the scripts: $(if $(NODE_KIND),it is too old,not found), needed node 20 or newer)
endif
MODULES := node_modules/.package-lock.json
TSX     := node_modules/.bin/tsx
ifeq ($(NODE_KIND),strips)
  TS      := $(NODE) --disable-warning=ExperimentalWarning
  RUNTIME :=
else
  # tsx's own program would start a second node; before 20.6, node takes it by another option.
  TS      := $(NODE) $(if $(filter tsx,$(NODE_KIND)),--import,--no-warnings --loader) tsx
  RUNTIME := $(MODULES)
endif

# What scripts import; scripts/README.md says which room is whose.
LIB := $(filter-out %.test.ts,$(wildcard scripts/cli/*.ts scripts/tables/*.ts scripts/pe/*.ts scripts/xen/*.ts scripts/judge/*.ts scripts/loaders/*.ts scripts/show/*.ts))

include scripts/dev/arguments.mk

##@ Build

.PHONY: all
all: $(OUT)/xen.mb.efi ## xen.efi in, verified xen.mb.efi out (XEN_EFI=FILE OUT=DIR RELOC=move|keep)
	@echo "$<:" $$(($$(wc -c < $<))) "bytes, from" $(call quote,$(XEN_EFI)) "with RELOC=$(RELOC)"

# Dates do not tell whether the input is another one: packages carry their files' own. This file changes when name,
# contents or RELOC do, and only then; what was made of another input goes, so that no failure leaves it.
$(OUT)/.made-of: FORCE | $(if $(call asked,boot),can-boot)
	@mkdir -p $(OUT)
	@{ printf '%s\n' $(call assign,XEN_EFI) 'RELOC ?= $(RELOC)'; printf '# '; cksum < $(call path,$(XEN_EFI)); } > $@.new 2> /dev/null || :
	@if cmp -s $@.new $@; then rm -f $@.new; else rm -f $(PRODUCTS) $(OUT)/.made-with; mv -f $@.new $@; fi

$(OUT)/1-relocated.efi: $(OUT)/.made-of scripts/relocate-reloc.ts $(LIB) | $(RUNTIME)
	$(TS) scripts/relocate-reloc.ts $(call path,$(XEN_EFI)) $@ $(if $(filter keep,$(RELOC)),--keep)

$(OUT)/2-aligned.efi: $(OUT)/1-relocated.efi scripts/align-sections.ts
	$(TS) scripts/align-sections.ts $< $@

$(OUT)/3-headers.efi: $(OUT)/2-aligned.efi scripts/emit-header.ts
	$(TS) scripts/emit-header.ts $< $@

# The report is shown, and kept beside the image.
$(OUT)/verified.txt: $(OUT)/3-headers.efi scripts/verify.ts
	$(TS) scripts/verify.ts $(call path,$(XEN_EFI)) $< > $@
	@cat $@

# What each boot loader will do with it; one that xen.mb.efi is for and that would not boot it fails the build, by its name.
$(OUT)/loaders.txt: $(OUT)/verified.txt scripts/check-loaders.ts
	$(TS) scripts/check-loaders.ts $(OUT)/3-headers.efi > $@

$(OUT)/xen.mb.efi: $(OUT)/loaders.txt
	@cp $(OUT)/3-headers.efi $@.new
	@mv -f $@.new $@

.PHONY: verify
verify: $(OUT)/verified.txt ## up to verify, without xen.mb.efi

# What is looked at and booted.
SHOWN := $(or $(IMAGE),$(OUT)/xen.mb.efi)

.PHONY: check-loaders
check-loaders: $(if $(IMAGE),,$(SHOWN)) | $(RUNTIME) ## what each boot loader will do with an image (IMAGE=FILE, default $(OUT)/xen.mb.efi)
	@$(TS) scripts/check-loaders.ts $(call path,$(SHOWN))

.PHONY: inspect
inspect: $(if $(IMAGE),,$(SHOWN)) | $(RUNTIME) ## what is in an image (IMAGE=FILE, default $(OUT)/xen.mb.efi)
	@$(TS) scripts/inspect.ts $(call path,$(SHOWN))

.PHONY: explain
explain: $(OUT)/verified.txt ## every byte that is different, in words: old, new, which step, who asks for it
	@$(TS) scripts/explain.ts $(call path,$(XEN_EFI)) $(OUT)/3-headers.efi

.PHONY: layout
layout: $(OUT)/layout.svg ## a picture of both, before and after: $(OUT)/layout.svg, layout.html

$(OUT)/layout.svg: $(OUT)/verified.txt scripts/layout.ts
	$(TS) scripts/layout.ts $(call path,$(XEN_EFI)) $(OUT)/3-headers.efi --html $(OUT)/layout.html
	$(TS) scripts/layout.ts $(call path,$(XEN_EFI)) $(OUT)/3-headers.efi --svg $@

.PHONY: man
man: $(OUT)/xen-mb-efi.1 ## the manual page, $(OUT)/xen-mb-efi.1

$(OUT)/xen-mb-efi.1: $(filter-out %.test.ts,$(wildcard scripts/*.ts)) $(LIB) Makefile package.json | $(RUNTIME)
	@mkdir -p $(OUT)
	@$(TS) scripts/dev/man.ts $@

.PHONY: dist
dist: $(OUT)/xen-mb-efi.mjs ## mb-efi as one file that needs nothing but node 20

$(OUT)/xen-mb-efi.mjs: $(wildcard scripts/*.ts) $(LIB) | $(MODULES)
	@mkdir -p $(OUT)
	$(TSX) scripts/dev/dist.ts $@

$(MODULES): package.json package-lock.json
	npm ci --no-audit --no-fund --loglevel=error
	@touch $@

##@ Package

SECTION_OF_CONFIG  := .config
SECTION_OF_KERNEL  := .kernel
SECTION_OF_RAMDISK := .ramdisk
SECTION_OF_UCODE   := .ucode
SECTION_OF_XSM     := .xsm
SECTION_OF_SBAT    := .sbat

# What is unified and signed: strip, then add sections, then sign.
TO_UNIFY := $(OUT)/$(if $(STRIP),xen.stripped.efi,xen.mb.efi)
TO_SIGN  := $(if $(GIVEN),$(OUT)/xen.unified.efi,$(TO_UNIFY))

all: $(TO_SIGN) | $(OUT)/.made-with

.PHONY: strip
strip: $(OUT)/xen.stripped.efi $(TO_SIGN) | $(OUT)/.made-with ## without DWARF and symbols; they go to xen.debug, for gdb and addr2line

$(OUT)/xen.stripped.efi: $(OUT)/xen.mb.efi scripts/strip-debug.ts
	@rm -f $@ $(OUT)/xen.unified.efi $(OUT)/xen.signed.efi
	$(TS) scripts/strip-debug.ts $< $@ --debug-file $(OUT)/xen.debug

.PHONY: unify
unify: $(OUT)/xen.unified.efi ## with dom0 and SBAT inside (CONFIG= KERNEL= RAMDISK= UCODE= XSM= SBAT=)

# As .made-of: changes when the files' names or contents do, or what they are added to.
$(OUT)/.made-with: FORCE | $(OUT)/.made-of
	@{ printf '%s\n' 'LAST_STRIP = $(STRIP)' $(foreach v,$(GIVEN),$(call assign,$(v))); cksum $(foreach v,$(GIVEN),$(call path,$($(v)))) < /dev/null | sed 's/^/# /'; } > $@.new
	@if cmp -s $@.new $@; then rm -f $@.new; else mv -f $@.new $@; fi

$(OUT)/xen.unified.efi: $(TO_UNIFY) $(OUT)/.made-with scripts/add-sections.ts
	@rm -f $@ $(OUT)/xen.signed.efi
	$(TS) scripts/add-sections.ts $< $@ $(foreach v,$(GIVEN),--section $(SECTION_OF_$(v))=$(call path,$($(v))))

# Every time: a signature has its time in it, and nobody can tell from dates which key made it.
.PHONY: sign
sign: $(TO_SIGN) | $(OUT)/.made-with ## signs for Secure Boot what was made last, and proves it (KEY= CERT=, NO_SBAT=1 without SBAT; needs sbsigntool)
	@rm -f $(OUT)/xen.signed.efi
	$(TS) scripts/sign.ts $< $(OUT)/xen.signed.efi --key $(call path,$(KEY)) --cert $(call path,$(CERT)) $(if $(NO_SBAT),--no-sbat)

##@ Test

.PHONY: test
test: check | $(MODULES) ## types, unit tests, goldens; TEST=NAME for some of the files
	@$(TSX) scripts/dev/run-tests.ts $(if $(TEST),--only $(call quote,$(TEST)))

.PHONY: check
check: | $(MODULES) ## types, which tsx does not check, and format
	@node_modules/.bin/tsc --noEmit
	@node_modules/.bin/prettier --check --cache --log-level warn 'scripts/**/*.ts'

.PHONY: format
format: | $(MODULES) ## puts every script into the one format that make check asks for
	@node_modules/.bin/prettier --write --cache --log-level warn 'scripts/**/*.ts'

.PHONY: fetch-xen
fetch-xen: | $(RUNTIME) ## the six known Xen builds to samples/xen (XEN_DEBS=DIR is looked in first)
	@$(TS) scripts/dev/fetch-xen.ts

.PHONY: golden golden-update golden-add
golden: | $(MODULES) ## goldens only; NAME=… XEN_EFI=… checks a build frozen by golden-add
	@$(TSX) scripts/dev/golden.ts check $(if $(NAME),$(call quote,$(NAME)) $(if $(XEN_EFI),$(call path,$(XEN_EFI))))

golden-update: | $(MODULES) ## rewrites the goldens and says what changed
	@$(TSX) scripts/dev/golden.ts update
	@for views in layout explain; do VIEWS_UPDATE=1 $(TSX) scripts/$$views.test.ts | grep -o 'golden/views/.*: written' || :; done

golden-add: | $(MODULES) ## freezes a build of your own (NAME=… XEN_EFI=…)
	@$(TSX) scripts/dev/golden.ts add $(call quote,$(NAME)) $(call path,$(XEN_EFI))

.PHONY: runtimes
runtimes: ## other node majors and Deno, for make test, to build/runtimes
	@mkdir -p build/runtimes
	npm install --prefix build/runtimes --no-audit --no-fund --loglevel=error node22@npm:node@22 node24@npm:node@24 deno@2

.PHONY: bench
bench: dist | $(RUNTIME) ## mb-efi beside objcopy, llvm-objcopy and cp: time, memory (RUNS=N; binutils, hyperfine, llvm, time)
	@$(TS) scripts/dev/bench.ts $(if $(RUNS),--runs $(call quote,$(RUNS)))

.PHONY: fuzz
fuzz: | $(MODULES) ## mutated images through everything (SECONDS=… or COUNT=…, SEED=…)
	@$(TSX) scripts/dev/fuzz.ts $(if $(SECONDS),--seconds $(call quote,$(SECONDS))) $(if $(COUNT),--count $(call quote,$(COUNT))) $(if $(SEED),--seed $(call quote,$(SEED)))

.PHONY: mutants
mutants: | $(MODULES) ## plants faults into the steps; verify, or a step, has to refuse each (ONLY=TEXT)
	@$(TSX) scripts/dev/mutants.ts $(if $(ONLY),--only $(call quote,$(ONLY)))

.PHONY: samples
samples: ## links samples/mini-xen anew, with gcc and binutils
	$(MAKE) -C samples/mini-xen

##@ Boot

# Boots through real loaders in QEMU; where tools are missing, paths are skipped and say so (CI=true: they fail).
# apt-get install $(make -s boot-packages) gets them all. IMAGE and BOOT as in: make boot IMAGE=build/xen.mb.efi BOOT=shim

.PHONY: boot-test
boot-test: | $(RUNTIME) ## mini-xen and one Xen build through every boot loader
	$(TS) scripts/dev/boot.ts

.PHONY: boot-matrix
boot-matrix: | $(RUNTIME) ## all known Xen builds through every boot loader
	$(TS) scripts/dev/boot.ts --matrix

.PHONY: boot
boot: $(if $(IMAGE),,$(SHOWN)) | $(RUNTIME) ## one image through one loader, on this terminal (IMAGE=FILE BOOT=PATH)
	$(TS) scripts/dev/boot.ts --image $(call path,$(SHOWN)) --boot $(call quote,$(BOOT))

can-boot: FORCE | $(RUNTIME)
	@$(TS) scripts/dev/boot.ts --boot $(call quote,$(BOOT))

.PHONY: boot-packages
boot-packages: | $(RUNTIME) ## the Debian packages that the boot targets need
	@$(TS) scripts/dev/boot.ts --packages

##@ In a Xen tree

.PHONY: install-xen uninstall-xen xen-tree-test
install-xen: dist | $(RUNTIME) ## adds xen.mb.efi to the build of a Xen source tree (XEN=DIR)
	@$(TS) scripts/install-xen.ts $(call path,$(XEN)) --tool $(OUT)/xen-mb-efi.mjs

uninstall-xen: | $(RUNTIME) ## takes it out again, byte for byte (XEN=DIR)
	@$(TS) scripts/install-xen.ts $(call path,$(XEN)) --remove

xen-tree-test: dist | $(MODULES) ## builds real Xen sources with it, minutes each (ONLY=TEXT)
	@$(TSX) scripts/dev/xen-tree-test.ts $(if $(ONLY),--only $(call quote,$(ONLY)))

##@ Other

.PHONY: clean
clean: ## removes what was built in OUT; what was downloaded stays
	rm -f $(PRODUCTS) $(addprefix $(OUT)/,.made-of .made-of.new .made-with .made-with.new xen.mb.efi.new xen-mb-efi.mjs xen-mb-efi.1)
ifeq ($(OUT),build)
	rm -rf build/sample build/node-cache build/compiled build/golden build/bench build/boot build/xen-tree/*/ build/*.log
endif

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables: XEN_EFI (what was made last), OUT (build), RELOC (move), NODE (node), XEN_DEBS'

.PHONY: FORCE
FORCE:
