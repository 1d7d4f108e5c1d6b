"""How the page looks."""

CSS = """
:root { --ink: #1d2430; --soft: #5a6372; --line: #e3e7ed; --paper: #fff; --ground: #f4f6f9; --accent: #2f5fa8; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
header { background: var(--paper); border-bottom: 1px solid var(--line); padding: 28px max(24px, calc(50vw - 566px)) 0; }
h1 { margin: 0 0 4px; font-size: 28px; letter-spacing: -.01em; }
h2 { margin: 0 0 8px; font-size: 19px; }
header p { margin: 0 0 16px; color: var(--soft); }
small { color: var(--soft); margin-left: 8px; }
nav { display: flex; gap: 4px; flex-wrap: wrap; }
nav a { color: var(--accent); text-decoration: none; padding: 8px 12px; border-radius: 8px 8px 0 0; }
nav a:hover { background: var(--ground); }
main { max-width: 1180px; margin: 0 auto; padding: 24px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px;
  margin-bottom: 20px; box-shadow: 0 1px 2px rgba(20, 30, 50, .04); }
section > p { color: var(--soft); margin: 0 0 14px; max-width: 78ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); padding: 8px 14px 8px 0;
  white-space: nowrap; vertical-align: bottom; }
td { padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
tbody tr:hover { background: #f8fafc; }
tbody tr:last-child td { border-bottom: 0; }
#published td:last-child, #published td:nth-last-child(2) { white-space: normal; }
.absent { color: #a05a00; }
.gain { color: #1a7a35; }
.loss { color: #b8293a; }
.chip { display: inline-block; padding: 1px 10px; border-radius: 999px; background: #e9edf3; color: #44505f; font-size: 13px;
  white-space: nowrap; }
.chip.done { background: #dff3e4; color: #1a6b31; }
.chip.failed { background: #fbe3e5; color: #a3202f; }
.chip.running { background: #e0ebfb; color: #1f4f9a; }
figure { margin: 0 0 18px; }
figure:last-child { margin-bottom: 0; }
figcaption { color: var(--soft); margin-bottom: 6px; }
.plot svg { max-width: 100%; height: auto; display: block; }
.pair { border-top: 1px solid var(--line); padding-top: 14px; }
.pair div { margin-top: 6px; }
.pair span { display: block; font-size: 13px; color: var(--soft); }
.pair img { width: 100%; max-width: 960px; display: block; border-radius: 6px; border: 1px solid var(--line); }
details summary { cursor: pointer; }
details code { display: block; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 60ch; color: var(--soft);
  margin-top: 6px; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 700px) { main { padding: 12px; } section { padding: 16px; } th { white-space: normal; min-width: 8ch; }
  .plot { overflow-x: auto; } .plot svg { max-width: none; width: 600px; } .pair { overflow-x: auto; }
  .pair img { min-width: 600px; } }
@media print { body { background: #fff; } section { break-inside: avoid; box-shadow: none; } nav { display: none; } }
"""
