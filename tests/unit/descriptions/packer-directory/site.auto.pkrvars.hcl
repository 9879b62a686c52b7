mirror = "https://mirror.example.org"
