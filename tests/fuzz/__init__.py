# SPDX-License-Identifier: Apache-2.0
"""Properties of any input, by hypothesis."""
