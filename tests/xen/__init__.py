"""The daemon on a real Xen: Debian's hypervisor and dom0 kernel, emulated by QEMU."""
