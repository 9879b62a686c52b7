# Ubuntu 22.04 by autoinstall, after the templates that people share.
packer {
  required_plugins {
    qemu = {
      version = ">= 1.0.9"
      source  = "github.com/hashicorp/qemu"
    }
  }
}

variable "release" {
  type        = string
  default     = "22.04.4"
  description = "The point release"
}

variable "mirror" {
  type    = string
  default = "https://releases.example.org"
}

variable "ssh_password" {
  type      = string
  default   = "packer-2204-pw"
  sensitive = true
}

variable "registration" {
  type      = string
  sensitive = true
  default   = "reg-0815-code"
}

variable "cpus" {
  type    = number
  default = 4
}

locals {
  iso        = "ubuntu-${var.release}-live-server-amd64.iso"
  stamp      = formatdate("YYYYMMDD", timestamp())
  iso_folder = "${var.mirror}/${split(".", var.release)[0]}"
}

local "iso_url" {
  expression = "${var.mirror}/22.04/${local.iso}"
}

source "qemu" "ubuntu" {
  iso_url          = local.iso_url
  iso_checksum     = "file:${var.mirror}/22.04/SHA256SUMS"
  accelerator      = "kvm"
  cpus             = var.cpus
  memory           = 4096
  disk_size        = "20G"
  disk_compression = true
  efi_boot         = true
  format           = "qcow2"
  headless         = true
  vm_name          = "ubuntu-${local.stamp}"
  boot_wait        = "3s"
  boot_command = [
    "c<wait>",
    "linux /casper/vmlinuz autoinstall ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/<enter>",
  ]
  http_content = {
    "/meta-data" = ""
    "/user-data" = templatefile("${path.root}/user-data.pkrtpl", { password = var.ssh_password })
  }
  ssh_username     = "ubuntu"
  ssh_password     = var.ssh_password
  ssh_timeout      = "45m"
  shutdown_command = "echo '${var.ssh_password}' | sudo -S shutdown -P now"
}

build {
  name        = "ubuntu"
  description = "Ubuntu 22.04 for workers"
  sources     = ["source.qemu.ubuntu"]

  provisioner "shell" {
    environment_vars = ["DEBIAN_FRONTEND=noninteractive"]
    inline = [
      "apt-get update",
      <<-EOT
        for name in htop jq; do
          apt-get install -y "$${name}"
        done
      EOT
      , "echo ${var.release} > /etc/release-of-image"
    ]
  }

  provisioner "shell" {
    inline = ["register --code ${var.registration}"]
  }

  provisioner "shell" {
    script = "${path.root}/scripts/cleanup.sh"
  }

  provisioner "file" {
    source      = "files/motd"
    destination = "/etc/"
  }

  post-processor "manifest" {
    output = "manifest.json"
  }
}
