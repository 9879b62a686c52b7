# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""What the documentation of every module of this collection says the same way."""

from __future__ import annotations


class ModuleDocFragment:
    # The module adds «support» (and «details» where it is not full) to each attribute.
    DOCUMENTATION = r"""
author:
  - cloudimg.factory contributors (@cloudimg-factory)
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and tells what would change without changing it.
  diff_mode:
    description: Returns details on what has changed (or would change, in C(check_mode)) when in diff mode.
  idempotent:
    description: When run twice in a row outside C(check_mode) with the same arguments, the second time nothing changes.
"""

    # For modules that work for long (see module_utils/_progress.py): every option must be documented, private ones too.
    JOB = r"""
options:
  _job:
    description:
      - Private to the action plugin of the same name, which follows the module's work by it. Do not set it.
    type: dict
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module changes nothing.
  diff_mode:
    support: N/A
    details:
      - This module changes nothing.
  idempotent:
    support: full
    details:
      - This module changes nothing.
"""
