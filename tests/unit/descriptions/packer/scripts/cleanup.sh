#!/bin/sh
set -eu
apt-get clean
