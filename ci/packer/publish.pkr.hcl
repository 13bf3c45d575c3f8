# Builds a machine with QEMU and publishes its disk. OHURI and OHAUTH, USER-UUID:KEY, are
# in the environment that packer is run in: no variable of Packer holds a secret.
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1.0"
    }
  }
}

variable "name" {
  type    = string
  default = "debian"
}

variable "keep" {
  type    = number
  default = 3
}

variable "iso_url" {
  type = string
}

variable "iso_checksum" {
  type = string
}

source "qemu" "machine" {
  iso_url          = var.iso_url
  iso_checksum     = var.iso_checksum
  output_directory = "output"
  vm_name          = "disk.qcow2"
  format           = "qcow2"
  disk_size        = "10G"
  ssh_username     = "root"
  ssh_timeout      = "30m"
  shutdown_command = "poweroff"
}

build {
  sources = ["source.qemu.machine"]

  post-processor "shell-local" {
    environment_vars = [
      "DISK=output/disk.qcow2",
      "NAME=${var.name}",
      "KEEP=${var.keep}",
    ]
    inline_shebang = "/bin/sh -eu"
    inline = [
      # The disk of the qcow2 is sent, as a delta on top of the last one.
      "openhosting publish --name=\"$NAME\" --keep=\"$KEEP\" --receipt=\"$NAME.receipt.json\" --progress=plain -- \"$DISK\" > \"./$NAME.drive\"",
      "openhosting verify --sample=5 -- \"$NAME.receipt.json\"",
      "echo \"published as drive $(cat \"./$NAME.drive\")\"",
    ]
  }
}
