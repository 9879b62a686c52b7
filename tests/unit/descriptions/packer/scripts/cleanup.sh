#!/bin/bash
set -eu
apt-get clean
