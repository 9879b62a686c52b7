# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role cloud_init has made of a system."""


def test_cloud_init_is_there(host):
    assert host.package("cloud-init").is_installed
