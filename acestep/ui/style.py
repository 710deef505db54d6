"""How the apps look: one theme of system fonts (nothing is fetched from elsewhere) and one style sheet."""

from __future__ import annotations

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
CODE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    quiet_labels = {"background_fill": "none", "text_color": "*body_text_color", "padding": "0", "text_weight": "600"}
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=FONTS,
        font_mono=CODE_FONTS,
        spacing_size="sm",
        radius_size="md",
    ).set(
        **{f"block_title_{part}": value for part, value in quiet_labels.items()},
        block_title_text_color_dark="*body_text_color",
        block_title_background_fill_dark="none",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        body_background_fill="*neutral_50",
        block_shadow="none",
        block_border_width="0px",
        input_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_300",
        checkbox_border_color="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_secondary_border_color="*neutral_300",
        button_border_width="1px",
        button_large_text_weight="600",
        button_large_padding="7px 16px",
        button_large_text_size="*text_md",
        block_label_background_fill="*background_fill_secondary",
        block_label_background_fill_dark="*background_fill_secondary",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
    )


CSS = """
.gradio-container { max-width: 1360px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container [data-testid=status-tracker].hide { display: none; }
.gradio-container h1 { font-size: 1.35rem !important; font-weight: 650; margin: .2rem 0 0; }
.gradio-container [role=tab][aria-selected=true] { color: var(--primary-700); font-weight: 600; }
.dark .gradio-container [role=tab][aria-selected=true], .gradio-container.dark [role=tab][aria-selected=true] {
  color: var(--primary-300); }

ol.way { display: flex; gap: .4rem; list-style: none; margin: .3rem 0; padding: 0; flex-wrap: wrap; }
ol.way li { flex: 1 1 7.5rem; padding: .35rem .6rem; border-radius: 8px; min-height: 2.9rem; margin: 0;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); }
ol.way li b { display: block; font-weight: 600; font-size: .86rem; }
ol.way li span { font-size: .78rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
ol.way li.done { border-color: var(--primary-500); }
ol.way li.done b::before { content: "\\2713\\00a0"; color: var(--primary-600); }
ol.way li.here { background: var(--primary-50); border: 2px solid var(--primary-600); }
.dark ol.way li.here { background: var(--primary-900); }
ol.way li.ahead { opacity: .85; }
p.next { margin: .1rem 0 .3rem; color: var(--body-text-color-subdued); }

#work:not(:has(.work)) { display: none; }
#work { position: sticky; top: 0; z-index: 20; align-items: center; }
.work { padding: .5rem .8rem; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); overflow-wrap: anywhere; }
.work b { margin-right: .6rem; }
.work progress { width: 100%; height: .5rem; display: block; margin-top: .35rem; accent-color: var(--primary-600); }
.work.failed { border-color: #dc2626; }
.work.finished { border-color: var(--primary-500); }

.block.problem, .problem.problem { border-left: 4px solid #dc2626; padding: .5rem .9rem !important; background: #fef2f2;
  border-radius: 4px;  color: #7f1d1d; overflow-wrap: anywhere; }
.dark .problem { background: #450a0a; color: #fecaca; }
.problem *, .problem .problem.problem { color: inherit !important; border: 0; background: none;
  padding: 0 !important; }
.good { border-left: 4px solid var(--primary-500); padding: .4rem .9rem !important; overflow-wrap: anywhere; }
.good .good { border: 0; padding: 0 !important; }
.wrong input, .wrong textarea { border-color: #dc2626 !important; }
.wrong span[data-testid="block-info"] + div, .wrong .info { color: #dc2626 !important; }

figure.chart { margin: 0 0 .8rem; }
figure.chart figcaption { font-weight: 600; display: flex; justify-content: space-between; flex-wrap: wrap; }
figure.chart ul { list-style: none; display: flex; gap: .9rem; margin: 0; padding: 0; font-weight: 400;
  font-size: .85rem; flex-wrap: wrap; }
figure.chart li::before { content: ""; display: inline-block; width: 1rem; height: 3px; margin: 0 .35rem .2rem 0;
  background: currentColor; }
figure.chart svg { width: 100%; height: auto; }
figure.chart text { font-size: 11px; fill: var(--body-text-color-subdued); }
figure.chart .grid { stroke: var(--border-color-primary); stroke-width: 1; }
figure.chart polyline { fill: none; stroke: currentColor; stroke-width: 2; vector-effect: non-scaling-stroke; }
figure.chart circle { fill: currentColor; }
figure.chart .raw { color: var(--neutral-400); stroke-width: 1; opacity: .65; }
figure.chart .smooth { color: var(--primary-600); }
figure.chart .validation { color: #d97706; }
figure.chart .other0 { color: #2563eb; } figure.chart .other1 { color: #c026d3; }
figure.chart .other2 { color: #ca8a04; } figure.chart .other3 { color: #dc2626; }
figure.chart.empty p { color: var(--body-text-color-subdued); padding: 2rem 0; text-align: center; }

.folder > button, .bar > button { align-self: end; margin-bottom: 9px; }
.meter { margin: 0 0 .7rem; }
.meter b { display: block; font-weight: 600; font-size: .9rem; }
.meter span, .meter p { font-size: .85rem; color: var(--body-text-color-subdued); }
.meter .bar { height: .6rem; border-radius: 5px; background: var(--border-color-primary); overflow: hidden; }
.meter .bar i { display: block; height: 100%; background: var(--primary-600); }
.meter.filling .bar i { background: #d97706; }
.meter.full .bar i { background: #dc2626; }
ul.problems { list-style: none; margin: .3rem 0; padding: 0; font-size: .88rem; }
ul.problems li { border-left: 3px solid #d97706; padding: .15rem .6rem; margin: .2rem 0; overflow-wrap: anywhere; }

.runs { overflow: auto; max-height: 22rem; max-width: calc(100vw - 4.4rem); border-radius: 8px;
  border: 1px solid var(--border-color-primary); }
table.runs-table { border-collapse: collapse; width: 100%; font-size: .88rem; }
table.runs-table th { position: sticky; top: 0; background: var(--background-fill-secondary); text-align: left;
  font-weight: 600; padding: .4rem .7rem; white-space: nowrap; }
table.runs-table td { padding: .35rem .7rem; border-top: 1px solid var(--border-color-primary); white-space: nowrap; }
table.runs-table tr.chosen td { background: var(--primary-50); }
.dark table.runs-table tr.chosen td { background: var(--primary-900); }
table.runs-table .state { padding: .1rem .5rem; border-radius: 999px; border: 1px solid var(--border-color-primary); }
table.runs-table .running { border-color: var(--primary-600); color: var(--primary-700); font-weight: 600; }
.dark table.runs-table .running { color: var(--primary-300); }
table.runs-table .interrupted, table.runs-table .failed { border-color: #d97706; }
tr.changed th, tr.changed td { font-weight: 600; }
tr.error td { color: #dc2626; } tr.warning td { color: #b45309; }
.dark tr.error td { color: #fca5a5; } .dark tr.warning td { color: #fbbf24; }

.gradio-container :is(table.facts, table.runs-table), .gradio-container :is(table.facts, table.runs-table) tr {
  border: 0; }
.gradio-container table.facts :is(th, td), .gradio-container table.runs-table :is(th, td) { border: 0; }
.gradio-container table.runs-table td, .gradio-container table.runs-table th[scope=row] {
  border-top: 1px solid var(--border-color-primary); }
.gradio-container { --chosen: var(--primary-50); }
.dark, .dark .gradio-container { --chosen: var(--primary-900); }
p.quiet { color: var(--body-text-color-subdued); margin: .2rem 0; }
p.facts-line { margin: .3rem 0; }
p.outside { border-left: 3px solid #d97706; padding: .15rem .6rem; margin: .3rem 0; overflow-wrap: anywhere; }
.empty { text-align: center; padding: 2.2rem 1rem; color: var(--body-text-color-subdued); max-width: 46rem;
  margin: 0 auto; }
.empty h3 { font-size: 1.1rem; font-weight: 600; }
#songs, .wide { max-width: calc(100vw - 4.4rem); border: 1px solid var(--border-color-primary); border-radius: 8px;
  overflow: auto; }
#songs:not(:has(table)) { border: 0; }
:is(#song-notes, #bulk-preview):not(:has(p, li)) { display: none; }
#songs.block, #songs > *, .wide { padding: 0 !important; }
.gradio-container :is(#songs, .wide) table { border: 0; border-radius: 0; }
.gradio-container #songs button { all: unset; cursor: pointer; font-weight: 600; }
.gradio-container #songs button:focus-visible { outline: 2px solid var(--primary-600); }
.gradio-container, .gradio-container > .main { width: 100%; box-sizing: border-box; }
:is(table.songs, table.changes) { border-collapse: collapse; width: 100%; font-size: .86rem; margin: 0; }
.gradio-container :is(table.songs, table.changes) :is(tr, th, td) { border: 0; }
:is(table.songs, table.changes) :is(th, td) { padding: .3rem .55rem; text-align: left; }
.gradio-container :is(table.songs, table.changes) td { border-top: 1px solid var(--border-color-primary); }
table.songs td { white-space: nowrap; cursor: pointer; }
table.songs td:first-child { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
table.songs td:nth-child(9) { white-space: normal; min-width: 14rem; }
table.songs th { position: sticky; top: 0; background: var(--background-fill-secondary); z-index: 1; }
table.songs th[aria-sort=ascending] button::after { content: " \\2191"; }
table.songs th[aria-sort=descending] button::after { content: " \\2193"; }
table.songs tbody tr:hover td { background: var(--background-fill-secondary); }
table.songs .lacks { color: #b45309; } .dark table.songs .lacks { color: #fbbf24; }
.backends table { min-width: 40rem; }
.unseen, .form:has(> .unseen) { display: none !important; }
ul.plain { margin: .3rem 0; padding-left: 1.1rem; }
table.changes td { vertical-align: top; overflow-wrap: anywhere; }
table.changes del { color: #b91c1c; } table.changes ins { color: #047857; text-decoration: none; }
.dark table.changes del { color: #fca5a5; } .dark table.changes ins { color: #6ee7b7; }
#song-bar { border-top: 1px solid var(--border-color-primary); padding-top: .6rem; align-items: center; }
#song-heading small { font-weight: 400; color: var(--body-text-color-subdued); }
#song-heading h3 { font-size: 1.05rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
pre.prompt { white-space: pre-wrap; font-family: var(--font-mono); font-size: .82rem; padding: .6rem .8rem;
  margin: .3rem 0; border-radius: 6px; background: var(--background-fill-secondary); overflow-wrap: anywhere; }
table.facts { border-collapse: collapse; width: 100%; font-size: .9rem; }
table.facts th { text-align: left; font-weight: 600; padding: .2rem .8rem .2rem 0; white-space: nowrap;
  vertical-align: top; }
table.facts td { padding: .2rem 0; overflow-wrap: anywhere; }
.setup { align-items: flex-start; gap: 1.6rem; }
.setup h3 { font-size: .95rem; font-weight: 650; margin: 0; }
.groups { display: grid !important; grid-template-columns: repeat(3, 1fr); grid-auto-flow: dense; gap: 1.2rem 1rem; }
.group { grid-column: span 3; gap: .2rem !important; align-self: start; }
.group.wide1 { grid-column: span 1; } .group.wide2 { grid-column: span 2; }
.settings > .form { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr));
  gap: 0; background: none; border: 0; }
.settings .block { min-width: 0 !important; background: none; }
.bar { align-items: flex-end; }
.bar > .form { flex-grow: 4; }
.bar > button { white-space: nowrap; }
.prose table:is(.facts, .previews), .prose table:is(.facts, .previews) :is(tr, th, td) { border: 0; }
#train-asked:not(:has(p)) { display: none; }
.beside { position: sticky; top: 5.5rem; padding: .8rem 1rem; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-primary); }
.beside h3 { margin-top: 0; }
.quiet { color: var(--body-text-color-subdued); margin: .2rem 0; overflow-wrap: anywhere; }
dl.status { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .5rem 0; }
dl.status dt { font-size: .78rem; color: var(--body-text-color-subdued); }
dl.status dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 1.4rem; }
.pair figure.chart text { font-size: 14px; }
table.previews { display: block; overflow-x: auto; border-collapse: collapse; font-size: .9rem; }
table.previews caption { white-space: nowrap; text-align: left; color: var(--body-text-color-subdued); }
table.previews th { text-align: left; font-weight: 600; padding: .3rem .8rem .3rem 0; max-width: 22rem; }
table.previews th span { display: block; font-weight: 400; color: var(--body-text-color-subdued); }
table.previews td { padding: .3rem .8rem .3rem 0; }
table.previews audio { width: 16rem; height: 2.4rem; }

#export-parts .tab-container { flex-wrap: wrap; height: auto; overflow: visible; padding-bottom: .3rem; }
a.download { display: inline-block; padding: .35rem .9rem; border-radius: 8px; text-decoration: none;
  border: 1px solid var(--primary-600); }
section.play { border-top: 1px solid var(--border-color-primary); padding: .6rem 0; }
section.play h4 { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
section.play pre { white-space: pre-wrap; font-size: .82rem; margin: .3rem 0; }
.takes { display: flex; flex-wrap: wrap; gap: .6rem; margin: .4rem 0; }
figure.take { margin: 0; flex: 0 1 19rem; min-width: min(15rem, 100%); padding: .5rem .7rem; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
figure.take audio { width: 100%; height: 2.4rem; margin: .3rem 0; }

.log textarea { font-family: var(--font-mono); font-size: .82rem; }
:focus-visible { outline: 2px solid var(--primary-600); outline-offset: 2px; }

@media (max-width: 900px) {
  .groups { grid-template-columns: 1fr; }
  .groups > .group { grid-column: span 1; }
  .beside { position: static; }
  table.previews :is(tbody, tr, th, td) { display: block; }
  table.previews thead { display: none; }
  table.previews td::before { content: attr(data-label); display: block; }
}
@media (max-width: 640px) {
  figure.chart text { font-size: 18px !important; }
  ol.way li { flex-basis: 40%; }
  .gradio-container .form { flex-wrap: wrap; }
  .gradio-container .form > .block { min-width: min(100%, 14rem) !important; }
  .gradio-container { padding: .4rem !important; }
}
"""
