"""Theme, style sheet and head of the web page. Nothing is fetched from other hosts."""

from __future__ import annotations

import gradio as gr

from vlroute.serving.ui.texts import EN, ZH

#: One colour a mode, on the page as in the plot.
COLOURS = {"instruct": "#0f766e", "thinking": "#7c3aed", "router": "#2563eb"}

_SANS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "Noto Sans SC", "sans-serif",
)  # fmt: skip
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")
FONT = ", ".join(f'"{name}"' if " " in name else name for name in _SANS)

# The policy keeps the browser from fetching anything elsewhere, a picture named in a model's answer included.
# A first visit in a Chinese browser goes to the Chinese page; whoever chose a language stays with it.
HEAD = """
<meta http-equiv="Content-Security-Policy" content="default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'">
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Cpath
 d='M4 16h8c6 0 6-9 16-9M12 16c6 0 6 9 16 9' fill='none' stroke='%232563eb' stroke-width='4'/%3E%3C/svg%3E">
<script>
(() => {
  const asked = new URLSearchParams(location.search).get("lang");
  try { if (asked) localStorage.setItem("vlroute-language", asked); } catch (_) {}
  let chosen = asked;
  try { chosen = chosen || localStorage.getItem("vlroute-language"); } catch (_) {}
  const chinese = /\\/zh\\/?$/.test(location.pathname);
  document.documentElement.lang = chinese ? "zh" : "en";
  if (!chinese && (chosen || navigator.language).startsWith("zh"))
    location.replace(location.pathname.replace(/\\/?$/, "/zh") + location.search);
})();
</script>
"""

CSS = (
    """
:root, .gradio-container { --font: FONT !important; }
.gradio-container { max-width: 1100px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container main, .gradio-container .wrap.contain { width: 100%; }
.gradio-container > .main, main.contain { padding-top: 0 !important; }
.nav-holder { display: none !important; }
#head { display: flex; align-items: baseline; gap: 12px; flex-wrap: wrap; padding: 6px 2px 2px; }
#head h1 { font-size: 22px; font-weight: 700; letter-spacing: -.01em; margin: 0; }
#head p { margin: 0; color: var(--body-text-color-subdued); flex: 1 1 auto; min-width: 0; }
#head a { color: var(--link-text-color); text-decoration: none; border: 1px solid var(--border-color-primary);
  border-radius: 999px; padding: 3px 12px; font-size: 14px; white-space: nowrap; }
.lead p { color: var(--body-text-color-subdued); margin: 0; }
.talk { height: clamp(340px, calc(100dvh - 290px), 820px) !important; }
.side { height: clamp(240px, calc(100dvh - 440px), 620px) !important; }
.side-column { gap: 8px !important; }
.talk .placeholder, .side .placeholder { text-align: center; padding: 0 24px; max-width: 560px; margin: 0 auto; }
.talk .user img { max-height: 280px; object-fit: contain; }
/* Gradio's own buttons to clear, share and download: they would act on what is shown alone, or elsewhere */
.talk > .wrapper > .top-panel, .side > .wrapper > .top-panel, .message-buttons-right { display: none !important; }
.side-head { font-size: 15px; font-weight: 600; margin: 0; }
.side-head::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 8px; }
.side-head.instruct::before { background: INSTRUCT; }
.side-head.thinking::before { background: THINKING; }
.tools { align-items: center; justify-content: space-between; gap: 10px !important; }
.tools > :first-child { flex: 0 1 210px !important; min-width: 0 !important; margin: 0 auto 0 0 !important; }
.tools > button, .tools > a { flex: 0 0 auto !important; width: auto !important; white-space: nowrap; }
.badge { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; font-size: 13px; line-height: 1.3;
  margin: 2px 0; color: var(--body-text-color-subdued); }
.badge > span { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 2px 9px;
  white-space: nowrap; }
.badge > .instruct { background: INSTRUCT; border-color: INSTRUCT; color: #fff; font-weight: 600; }
.badge > .thinking { background: THINKING; border-color: THINKING; color: #fff; font-weight: 600; }
.badge > .warn { background: #b45309; border-color: #b45309; color: #fff; white-space: normal; }
.badge > .why { border: 0; padding: 2px 0; white-space: normal; flex-basis: 100%; }
.bar { font-size: 14px; color: var(--body-text-color-subdued); }
.bar .track { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden;
  margin-bottom: 6px; }
.bar .track i { display: block; height: 100%; background: ROUTER; transition: width .2s; }
#results, #results * { font-family: var(--font) !important; }
.html-container { padding: 0 !important; }
.says-of p { margin: 0; }
.of { font-size: 13px; color: var(--body-text-color-subdued) !important; margin: 8px 0 0; }
#price + .block { margin-top: -8px; }
.drop .wrap { font-size: 0 !important; min-height: 96px; }
.drop .wrap .or { display: none; }
.drop .wrap::after { font-size: 15px; text-align: center; padding: 0 12px; }
.drop-en .wrap::after { content: "DROP_EN"; }
.drop-zh .wrap::after { content: "DROP_ZH"; }
.toast-title { font-size: 0 !important; }
.toast-title::after { font-size: 16px; content: "NOTICE_EN"; }
html:lang(zh) .toast-title::after { content: "NOTICE_ZH"; }
.position input[type=number], .position .reset-button, .position .min_value, .position .max_value,
.position .head .tab-like-container { display: none !important; }
.position input[type=range]::-webkit-slider-thumb { border: 3px solid ROUTER !important; }
.position input[type=range]::-moz-range-thumb { border: 3px solid ROUTER !important; }
.ends { display: flex; justify-content: space-between; gap: 16px; font-size: 13px;
  color: var(--body-text-color-subdued); }
.ends span:last-child { text-align: right; }
.figures { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 8px; }
.figures div { flex: 1 1 96px; border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 8px 12px; }
.figures b { display: block; font-size: 20px; white-space: nowrap; font-variant-numeric: tabular-nums;
  color: var(--body-text-color); }
.figures small { font-size: 13px; color: var(--body-text-color-subdued); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--body-text-color-subdued); }
.legend span { display: flex; align-items: center; gap: 7px; }
.legend i { width: 12px; height: 12px; flex: none; }
.legend .line { width: 20px; height: 3px; background: ROUTER; }
.legend .band { width: 20px; background: ROUTER; opacity: .2; }
.legend .point { border-radius: 50%; background: #f59e0b; }
.legend .instruct { background: INSTRUCT; }
.legend .thinking { background: THINKING; clip-path: polygon(50% 0, 100% 100%, 0 100%); }
.says { font-weight: 600; margin: 2px 0; }
.dark #curve text { fill: #a3b1c6 !important; }
.dark #use-price input { border-color: #94a3b8 !important; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 0 14px 14px !important; }
  #tabs .tab-container button { padding: 0 10px !important; }
  .batch-tools > :first-child { flex: 1 1 100% !important; }
  .batch-tools > button, .batch-tools > a { flex: 1 1 auto !important; }
  #head p { flex-basis: 100%; order: 3; font-size: 14px; }
  #head h1 { flex: 1; }
  .figures div { padding: 8px 9px; flex-basis: 84px; }
  .figures b { font-size: 17px; }
  .talk { height: clamp(320px, calc(100dvh - 350px), 720px) !important; }
  .side { height: 300px !important; }
}
""".replace("INSTRUCT", COLOURS["instruct"])
    .replace("THINKING", COLOURS["thinking"])
    .replace("ROUTER", COLOURS["router"])
    .replace("DROP_EN", EN.drop)
    .replace("DROP_ZH", ZH.drop)
    .replace("NOTICE_EN", EN.notice)
    .replace("NOTICE_ZH", ZH.notice)
    .replace("FONT", FONT)
)


def theme() -> gr.themes.Base:
    """Quiet colours and the fonts that the visitor's system has."""
    return gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in _SANS],
        font_mono=[gr.themes.Font(name) for name in _MONO],
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
