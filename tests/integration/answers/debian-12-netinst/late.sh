#!/bin/sh
# The installer makes the boot loader for the firmware that it was booted by. The image has to boot under all of them.
set -e
esp=/dev/vda2
apt-install grub-pc-bin grub-efi-amd64-bin grub-efi-amd64-signed shim-signed dosfstools
mkdir -p /target/boot/efi
if ! grep -q ' /target/boot/efi ' /proc/mounts; then
    # Booted by a BIOS: the installer made the partition, but neither its file system nor its place in fstab.
    in-target mkfs.vfat -n ESP "$esp"
    in-target sfdisk --no-reread --no-tell-kernel --part-type /dev/vda "${esp#/dev/vda}" C12A7328-F81F-11D2-BA4B-00A0C93EC93B
    mount -t vfat "$esp" /target/boot/efi
    echo "UUID=$(in-target --pass-stdout blkid -s UUID -o value "$esp") /boot/efi vfat umask=0077,nofail 0 1" >> /target/etc/fstab
fi
in-target grub-install --target=i386-pc /dev/vda
in-target grub-install --target=x86_64-efi --no-nvram --uefi-secure-boot --force-extra-removable
in-target update-grub
