# memcr for Yocto. Copy this file into a layer as recipes-support/memcr/memcr_0.1.0.bb and
# set SRC_URI and SRCREV to where your copy of the sources is.
#
# cargo fetches nothing in do_compile: every crate of Cargo.lock is an entry of SRC_URI.
# They are not kept here, since they change with Cargo.lock; write the list once, and again
# after each update:
#
#     bitbake -c update_crates memcr        # makes memcr-crates.inc beside the recipe
#
# It was written for the classes of Yocto 5.3, and needs Rust 1.88 or later. No test of
# this project builds it.
SUMMARY = "Takes the memory of a live process away and gives it back"
DESCRIPTION = "Freezes a process, sends its pages through plugins that compress and encrypt \
into a file or a tmpfs, drops them from RAM, and gives every byte back later."
SECTION = "base"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE-MIT;md5=db56f73a7768ed656f5025305ece9824 \
                    file://LICENSE-APACHE;md5=22a53954e4e0ec258dfce4391e905dac"

SRC_URI = "git://CHANGE.ME/memcr.git;protocol=https;branch=main"
SRCREV = "CHANGE_ME"

inherit cargo cargo-update-recipe-crates pkgconfig systemd useradd

include memcr-crates.inc

# The stages md5 and encrypt. lz4 and zstd are built with their crates, by the C compiler.
DEPENDS = "openssl"

# The architectures of memcr/src/sys/arch.
COMPATIBLE_HOST = "x86_64.*-linux"

# The programs and the plugins that an installation has, and no tests.
MEMCR_STAGES = "crc32 encrypt file lz4 md5 passthrough tmpfs zstd"
CARGO_BUILD_FLAGS += "-p memcr -p memcr-client -p memcrclient \
    ${@' '.join('-p memcr-stage-' + name for name in d.getVar('MEMCR_STAGES').split())}"

# memcr looks for plugins in lib/memcr/stages beside bin, and in /usr/lib/memcr/stages:
# with another libdir (lib64) they go to the latter.
MEMCR_STAGEDIR = "${prefix}/lib/memcr/stages"

do_install() {
    built=${B}/target/${CARGO_TARGET_SUBDIR}

    install -d ${D}${bindir} ${D}${MEMCR_STAGEDIR} ${D}${libdir}/pkgconfig ${D}${includedir}
    install -m 0755 $built/memcr $built/memcr-client ${D}${bindir}
    for name in ${MEMCR_STAGES}; do
        # Not writable for a group: memcr refuses such a plugin.
        install -m 0755 $built/libmemcr_stage_$name.so ${D}${MEMCR_STAGEDIR}
    done

    install -m 0755 $built/libmemcrclient.so ${D}${libdir}
    install -m 0644 $built/libmemcrclient.a ${D}${libdir}
    install -m 0644 ${S}/memcr/client/c/include/libmemcrclient.h ${D}${includedir}
    sed -e 's:@PREFIX@:${prefix}:; s:@VERSION@:${PV}:; s:^libdir=.*:libdir=${libdir}:' \
        ${S}/memcr/client/c/libmemcrclient.pc.in > ${D}${libdir}/pkgconfig/libmemcrclient.pc
    chmod 0644 ${D}${libdir}/pkgconfig/libmemcrclient.pc

    install -d ${D}${datadir}/memcr ${D}${sysconfdir}/memcr
    install -m 0644 ${S}/pipeline.toml ${D}${datadir}/memcr
    install -m 0644 ${S}/dist/daemon.toml ${D}${sysconfdir}/memcr

    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/tmpfiles.d
    install -m 0644 ${S}/dist/memcr.service ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/dist/tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/memcr.conf
}

SYSTEMD_SERVICE:${PN} = "memcr.service"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system memcr"

# The client library has no version in its name: programs for the C memcr ask for
# libmemcrclient.so, so that it belongs to what runs and not to what is developed with.
PACKAGES =+ "libmemcrclient ${PN}-client"
FILES_SOLIBSDEV = ""
FILES:libmemcrclient = "${libdir}/libmemcrclient.so"
FILES:${PN}-client = "${bindir}/memcr-client"
FILES:${PN} += "${MEMCR_STAGEDIR} ${datadir}/memcr ${nonarch_libdir}/tmpfiles.d"
FILES:${PN}-dev += "${includedir} ${libdir}/pkgconfig"
INSANE_SKIP:libmemcrclient += "dev-so"
RDEPENDS:${PN}-dev = "libmemcrclient"
CONFFILES:${PN} = "${sysconfdir}/memcr/daemon.toml"
