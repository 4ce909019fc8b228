# milvus-cdc.  "make help" lists the targets; V=1 shows the commands.
VERSION := 0.1.0
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
# What apt compares: a package that is built again from other sources takes e.g. DEB_VERSION=0.1.0+1.
DEB_VERSION ?= $(VERSION)
# Another folder lets two builds of one tree run at the same time.
BUILD ?= build
PKGS := libevent libevent_openssl jansson libnghttp2 libprotobuf-c sqlite3 yaml-0.1 openssl \
        rdkafka liblz4 libzstd snappy zlib libpq libsodium
INSTALL ?= install
PROTOC_C ?= protoc-c
PKG_CONFIG ?= pkg-config

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-6s %s\n' $(1) $(2))

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:

# ---- what must be installed, asked once; not for targets that compile nothing
NO_BUILD_GOALS := clean help lint
GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out $(NO_BUILD_GOALS),$(GOALS)),)
HAS_PKG = $(shell $(PKG_CONFIG) --exists $(1) 2>/dev/null || echo $(1))
HAS_HEADER = $(shell echo '\#include <$(1)>' | $(CC) -E -x c - >/dev/null 2>&1 || echo $(1))
MISSING := $(shell command -v $(PKG_CONFIG) >/dev/null || echo pkg-config) \
           $(shell command -v $(PROTOC_C) >/dev/null || echo protoc-c) \
           $(foreach p,$(PKGS),$(call HAS_PKG,$(p))) \
           $(foreach h,rocksdb/c.h uthash.h,$(call HAS_HEADER,$(h))) \
           $(if $(filter check%,$(GOALS)),$(call HAS_PKG,cmocka))
MISSING := $(strip $(MISSING))
ifneq ($(MISSING),)
$(error missing: $(MISSING) - run ./scripts/install-deps)
endif
PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS))
PKG_LIBS := $(shell $(PKG_CONFIG) --libs $(PKGS))
endif

# ---- flags
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wvla \
        -Wwrite-strings -Werror
BASE_CPPFLAGS := -D_GNU_SOURCE -DMILVUS_CDC_VERSION='"$(VERSION)"' -Iinclude -Isrc -I$(BUILD)/gen \
                 $(PKG_CFLAGS)
BASE_CFLAGS := -std=c11
LIBS := $(PKG_LIBS) -lrocksdb -lpthread -lm

release_CPPFLAGS := -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
release_CFLAGS := -O2 -g -fstack-protector-strong -fPIE
release_LDFLAGS := -pie -Wl,-z,relro,-z,now
asan_CFLAGS := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
               -fno-omit-frame-pointer
asan_LDFLAGS := -fsanitize=address,undefined
release_BIN := $(BUILD)/milvus-cdc
asan_BIN := $(BUILD)/asan/milvus-cdc

# ---- files
MAIN := src/daemon/main.c
HAVE_MAIN := $(wildcard $(MAIN))
SRCS := $(filter-out $(MAIN),$(wildcard src/*/*.c))
PROTOS := $(wildcard proto/*.proto)
GEN_C := $(PROTOS:proto/%.proto=$(BUILD)/gen/%.pb-c.c)
GEN_H := $(GEN_C:.c=.h)
TESTS := $(wildcard test/unit/test_*.c)
TEST_HELPERS := $(filter-out $(TESTS),$(wildcard test/unit/*.c))
TEST_BINS := $(TESTS:test/unit/%.c=$(BUILD)/asan/test/%)

# ---- generated code: before any compilation, since any file may include it
$(BUILD)/gen/%.pb-c.c $(BUILD)/gen/%.pb-c.h: proto/%.proto
	$(call say,PROTOC,$<)
	@mkdir -p $(BUILD)/gen
	$(Q)$(PROTOC_C) --c_out=$(BUILD)/gen -Iproto $<

gen: $(GEN_C) $(GEN_H)

# ---- one variant: $(1) is release or asan
define VARIANT
$(1)_OBJS := $$(SRCS:%.c=$(BUILD)/$(1)/%.o) $$(GEN_C:$(BUILD)/gen/%.c=$(BUILD)/$(1)/gen/%.o)

$(BUILD)/$(1)/gen/%.o: $(BUILD)/gen/%.c | $$(GEN_H)
	$$(call say,CC,$$<)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(BASE_CPPFLAGS) $$($(1)_CPPFLAGS) $$(BASE_CFLAGS) -w $$($(1)_CFLAGS) \
	    $$(CFLAGS) -MMD -MP -c -o $$@ $$<

$(BUILD)/$(1)/%.o: %.c | $$(GEN_H)
	$$(call say,CC,$$<)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(BASE_CPPFLAGS) $$($(1)_CPPFLAGS) $$(BASE_CFLAGS) $$(WARN) $$($(1)_CFLAGS) \
	    $$(CFLAGS) -MMD -MP -c -o $$@ $$<

$(BUILD)/$(1)/libcdc.a: $$($(1)_OBJS)
	$$(call say,AR,$$@)
	@mkdir -p $$(@D) && rm -f $$@
	$$(Q)$$(AR) rcs $$@ $$^

$$($(1)_BIN): $(BUILD)/$(1)/src/daemon/main.o $(BUILD)/$(1)/libcdc.a
	$$(call say,LINK,$$@)
	$$(Q)$$(CC) $$($(1)_CFLAGS) $$($(1)_LDFLAGS) $$(LDFLAGS) -o $$@ $$^ $$(LIBS)
endef
$(eval $(call VARIANT,release))
$(eval $(call VARIANT,asan))

all release: $(if $(HAVE_MAIN),$(release_BIN),$(BUILD)/release/libcdc.a)
asan: $(if $(HAVE_MAIN),$(asan_BIN),$(BUILD)/asan/libcdc.a)
ifeq ($(HAVE_MAIN),)
all release asan:
	@echo "no $(MAIN) yet: built the library only"
endif

# ---- unit tests
$(BUILD)/asan/test/%: $(BUILD)/asan/test/unit/%.o $(TEST_HELPERS:%.c=$(BUILD)/asan/%.o) $(BUILD)/asan/libcdc.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(asan_CFLAGS) $(asan_LDFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

# Runs all, then fails if any failed. With -j side by side: the two that take minutes first, each one's output in one piece.
UNIT_SLOW := $(filter %/test_repl %/test_verify,$(TEST_BINS))
UNIT_RUNS := $(patsubst %,run-%,$(UNIT_SLOW) $(filter-out $(UNIT_SLOW),$(TEST_BINS)))

$(UNIT_RUNS): run-%: %
	@UBSAN_OPTIONS=print_stacktrace=1 timeout 600 $< >$<.log 2>&1; echo $$? >$<.rc; echo "== $<"; cat $<.log

check-unit: $(UNIT_RUNS)
	@failed=; for t in $(TEST_BINS); do [ "$$(cat $$t.rc)" = 0 ] || failed="$$failed $${t##*/}"; done; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi; \
	echo "all $(words $(TEST_BINS)) test programs passed"

# ---- programs that tests and benchmarks use; not part of the daemon
$(BUILD)/tools/%: test/tools/%.c test/tools/raw.h $(GEN_C) $(GEN_H)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE_CPPFLAGS) $(BASE_CFLAGS) $(WARN) -O2 -g $(CFLAGS) -o $@ $< $(GEN_C) -levent $(LIBS)

# Reads with our own reader.
$(BUILD)/tools/waldump: test/tools/waldump.c $(BUILD)/asan/libcdc.a
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(BASE_CPPFLAGS) $(BASE_CFLAGS) $(WARN) $(asan_CFLAGS) $(CFLAGS) -o $@ $^ $(LIBS)

tools: $(patsubst test/tools/%.c,$(BUILD)/tools/%,$(wildcard test/tools/*.c))

lint:
	@if [ -x scripts/check-deps.sh ]; then scripts/check-deps.sh; \
	else echo "no scripts/check-deps.sh yet"; fi

# The files in etc/ name the paths of the Debian package.
PATHS = sed -e 's|/usr/bin/milvus-cdc|$(PREFIX)/bin/milvus-cdc|g' -e 's|/usr/libexec/|$(PREFIX)/libexec/|g' \
            -e 's|/etc/milvus-cdc/|$(SYSCONFDIR)/milvus-cdc/|g' -e 's|path: \./milvus-cdc\.db|path: $(STATEDIR)/milvus-cdc.db|'
STATEDIR := /var/lib/milvus-cdc
CONF := $(DESTDIR)$(SYSCONFDIR)/milvus-cdc/cdc.yaml
DOC := $(DESTDIR)$(PREFIX)/share/doc/milvus-cdc

install: $(release_BIN)
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/milvus-cdc $(dir $(CONF)) $(DESTDIR)$(UNITDIR) \
	    $(DESTDIR)$(PREFIX)/share/man/man8 $(DOC)/examples
	$(INSTALL) -m 755 $(release_BIN) $(DESTDIR)$(PREFIX)/bin/milvus-cdc
	$(PATHS) etc/keepalived/check-milvus-cdc >$(DESTDIR)$(PREFIX)/libexec/milvus-cdc/check-milvus-cdc
	chmod 755 $(DESTDIR)$(PREFIX)/libexec/milvus-cdc/check-milvus-cdc
	test -e $(CONF) || { $(INSTALL) -m 640 /dev/null $(CONF) && $(PATHS) etc/cdc.yaml >$(CONF); }
	$(PATHS) etc/systemd/milvus-cdc.service >$(DESTDIR)$(UNITDIR)/milvus-cdc.service
	$(PATHS) etc/man/milvus-cdc.8 | gzip -9n >$(DESTDIR)$(PREFIX)/share/man/man8/milvus-cdc.8.gz
	$(INSTALL) -m 644 README.md $(DOC)/README.md
	$(PATHS) etc/cdc.yaml >$(DOC)/examples/cdc.yaml
	$(PATHS) etc/keepalived/keepalived.conf >$(DOC)/examples/keepalived.conf
	$(PATHS) etc/cron.d/milvus-cdc >$(DOC)/examples/cron.d

deb: $(release_BIN)
	$(Q)scripts/deb $(BUILD) $(DEB_VERSION)

clean:
	rm -rf $(BUILD)

help:
	@echo "make              release build: $(BUILD)/milvus-cdc"
	@echo "make asan         with ASan and UBSan: $(BUILD)/asan/milvus-cdc"
	@echo "make check-unit   builds and runs test/unit/test_*.c with ASan and UBSan"
	@echo "make tools        test/tools/*.c, for scripts/bench"
	@echo "make gen          code generated from proto/"
	@echo "make lint         layer rules (scripts/check-deps.sh)"
	@echo "make install      DESTDIR=, PREFIX=$(PREFIX), SYSCONFDIR=$(SYSCONFDIR), UNITDIR=; keeps an existing cdc.yaml"
	@echo "make deb          $(BUILD)/milvus-cdc_$(DEB_VERSION)_<arch>.deb"
	@echo "make clean        removes $(BUILD)/"
	@echo "BUILD=folder (default: build); V=1 shows commands; CFLAGS and LDFLAGS are appended"

.PHONY: $(UNIT_RUNS) all release asan gen check-unit tools lint install deb clean help

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
