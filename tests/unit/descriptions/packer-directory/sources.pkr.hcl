source "qemu" "debian-12" {
  iso_url      = "${var.mirror}/debian-12.5.0-amd64-netinst.iso"
  iso_checksum = var.checksum
  disk_size    = var.disk_size
}

source "qemu" "debian-cloud" {
  disk_image   = true
  iso_url      = "${var.mirror}/debian-12-genericcloud-amd64.qcow2"
  iso_checksum = "sha512:0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
  disk_size    = 8192
}
