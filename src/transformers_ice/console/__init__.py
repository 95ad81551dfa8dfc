# SPDX-License-Identifier: Apache-2.0
"""What all commands share: arguments, exit codes and messages, tables, output files, and no secret in any of them."""

__all__: list[str] = []
