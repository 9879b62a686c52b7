build {
  sources = ["source.qemu.debian-cloud"]
  source "source.qemu.debian-12" {
    disk_size = "7G"
    memory    = 1024
  }
  provisioner "shell" {
    only   = ["qemu.debian-12"]
    inline = ["echo installed"]
  }
  provisioner "shell" {
    only   = ["qemu.debian-cloud"]
    inline = ["echo cloud"]
  }
}
