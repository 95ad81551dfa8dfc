# SPDX-License-Identifier: Apache-2.0
"""Web page: upload an image and see what an ICE model predicts for it, and where.

`launch_app` starts it; nothing here imports gradio before that. The modules: one image through one model
(`analysis`), other explainers (`methods`), token pruning (`pruning`); their figures and HTML (`pictures`,
`fragments`, `theme`); limits of requests (`limits`); the page and its start (`page`, `launch`).
"""

from .launch import AppArguments, launch_app, parse_app_arguments


__all__ = ["AppArguments", "launch_app", "parse_app_arguments"]
