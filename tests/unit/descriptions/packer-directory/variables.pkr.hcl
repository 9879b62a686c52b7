variable "mirror" {
  default = "https://nowhere.example.org"
}
variable "checksum" {
  type = string
}
variable "disk_size" {
  default = "6144M"
}
