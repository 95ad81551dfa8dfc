# SPDX-License-Identifier: Apache-2.0
"""Common parts of all commands: arguments, exit codes and messages, tables, output files, redaction of secrets."""

__all__: list[str] = []
