# SPDX-License-Identifier: Apache-2.0
"""Theme of the page: colours, fonts and corners. Fonts come with gradio and are served by the app itself."""

from __future__ import annotations

from pathlib import Path

import gradio as gr


__all__ = ["STYLE_SHEET", "build_theme"]

STYLE_SHEET = Path(__file__).with_name("style.css")


_NAMES = ("c50", "c100", "c200", "c300", "c400", "c500", "c600", "c700", "c800", "c900", "c950")


def _color(name: str, shades: str) -> gr.themes.Color:
    """Return a colour of eleven shades, from light to dark."""
    values = dict(zip(_NAMES, shades.split(), strict=True))
    return gr.themes.Color(name=name, **values)


_INK = _color("ink", "#F6F5F1 #ECEAE3 #DAD7CD #BDB9AC #8E8B80 #68665E #4C4B46 #33342F #20231F #151816 #0D0F0E")
_SEA = _color("sea", "#EAF5F4 #CFE8E6 #A3D3CF #6DBAB4 #3A9C96 #14807A #0B6A66 #095552 #08403E #072F2E #041E1D")

# values on the light and on the dark page
_PAIRS = {
    "body_background_fill": ("*neutral_50", "*neutral_950"),
    "body_text_color": ("*neutral_800", "*neutral_100"),
    "body_text_color_subdued": ("*neutral_600", "*neutral_300"),
    "background_fill_primary": ("white", "*neutral_900"),
    "background_fill_secondary": ("*neutral_50", "*neutral_800"),
    "block_background_fill": ("white", "*neutral_900"),
    "block_border_color": ("*neutral_200", "*neutral_700"),
    "block_label_background_fill": ("white", "*neutral_900"),
    "block_label_text_color": ("*neutral_700", "*neutral_200"),
    "block_title_text_color": ("*neutral_700", "*neutral_200"),
    "block_info_text_color": ("*neutral_600", "*neutral_300"),
    "block_shadow": ("0 1px 2px rgba(32, 35, 31, 0.06)", "none"),
    "button_primary_background_fill": ("*primary_600", "*primary_300"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_200"),
    "button_primary_text_color": ("white", "*neutral_950"),
    "checkbox_label_background_fill": ("white", "*neutral_800"),
    "checkbox_label_background_fill_hover": ("*neutral_50", "*neutral_700"),
    "checkbox_label_border_color": ("*neutral_300", "*neutral_600"),
    "checkbox_label_border_color_selected": ("*primary_600", "*primary_400"),
    "checkbox_border_color": ("*neutral_500", "*neutral_300"),
    "checkbox_label_background_fill_selected": ("*primary_50", "*primary_900"),
    "checkbox_label_text_color_selected": ("*primary_700", "*primary_100"),
    "checkbox_background_color_selected": ("*primary_600", "*primary_500"),
    "input_background_fill": ("white", "*neutral_800"),
    "input_border_color": ("*neutral_400", "*neutral_500"),
    "slider_color": ("*primary_600", "*primary_400"),
    "link_text_color": ("*primary_600", "*primary_300"),
}


def build_theme() -> gr.themes.Base:
    """Return the theme: ink on paper with one accent, light and dark."""
    # many fonts that come with gradio have a few letters only; these two, in these weights, are complete
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    heading = gr.themes.LocalFont("Montserrat", weights=(400, 700))
    theme = gr.themes.Base(
        primary_hue=_SEA,
        secondary_hue=_SEA,
        neutral_hue=_INK,
        radius_size=gr.themes.sizes.radius_lg,
        text_size=gr.themes.sizes.text_md,
        font=(font, heading, "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )
    modes = {
        f"{name}{mode}": value
        for name, pair in _PAIRS.items()
        for mode, value in zip(("", "_dark"), pair, strict=True)
    }
    return theme.set(
        **modes,
        button_primary_text_color_hover_dark="*neutral_950",
        checkbox_label_border_width="1px",
        color_accent="*primary_600",
    )
