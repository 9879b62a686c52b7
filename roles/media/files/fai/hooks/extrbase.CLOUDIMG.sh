# All packages are in the base file: nothing is fetched or installed in the guest.
skiptask repository debconf prepareapt updatebase instsoft
