# SPDX-License-Identifier: Apache-2.0
"""A page in the browser: drop a picture, see what an ICE model sees in it, and where."""

__all__: list[str] = []
