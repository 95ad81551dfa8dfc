# SPDX-License-Identifier: Apache-2.0
"""A page in the browser: drop a picture, see what an ICE model sees in it, and where.

`launch_app` starts it; nothing here imports gradio before that. In the files: one picture through one model
(`analysis`), other explainers (`methods`), fewer patches (`pruning`); what all of these look like (`pictures`,
`fragments`, `theme`); what visitors may ask for (`limits`); the page and its start (`page`, `launch`).
"""

from .launch import AppArguments, launch_app, parse_app_arguments


__all__ = ["AppArguments", "launch_app", "parse_app_arguments"]
