# SPDX-License-Identifier: Apache-2.0
"""Hostile inputs: tables of damaged, contradictory and malicious files and arguments, and the check of them all."""
