# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""How a report looks: light and dark as the reader's system has it, on a screen of any width, on paper."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#f3f5f8;--card:#fff;--ink:#17202b;--soft:#5b6877;--line:#e1e6ec;--track:#e9edf2;
--pass:#137a58;--fail:#bf2038;--warn:#a35c00;--none:#566476;--accent:#2b66d9;--chip:#eef2f7;
--s0:#3f78d8;--s1:#12907b;--s2:#c0762a;--s3:#8a5fd0;--s4:#c24d78;--s5:#4f8a35;--s6:#2d8fb5;--s7:#7d6a52;--s8:#a0529f;--s9:#66788c}
@media (prefers-color-scheme:dark){:root{--page:#0e1319;--card:#171e26;--ink:#e4eaf1;--soft:#95a3b3;--line:#28323d;
--track:#242e39;--pass:#2f9d77;--fail:#e0556a;--warn:#d18f2e;--none:#7f8d9d;--accent:#6fa3ff;--chip:#222b35;
--s0:#5b8fe8;--s1:#2aa58f;--s2:#c98740;--s3:#9d78dc;--s4:#d0658d;--s5:#6aa34f;--s6:#46a3c8;--s7:#9a8569;--s8:#b56cb4;--s9:#7b8da1}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Ubuntu,
Cantarell,"Noto Sans","DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%;overflow-wrap:break-word}
main{max-width:1180px;margin:0 auto;padding:28px 24px 48px}
h1{font-size:2rem;line-height:1.15;margin:0;letter-spacing:-.015em}
h2{font-size:1.1rem;margin:0 0 .9rem;letter-spacing:-.005em}
h3{font-size:.8rem;margin:1.1rem 0 .4rem;color:var(--soft);font-weight:600;text-transform:uppercase;letter-spacing:.05em}
p{margin:.4rem 0}.soft{color:var(--soft)}code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
"DejaVu Sans Mono",monospace;font-size:.86em}
.hash{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.78rem;overflow-wrap:anywhere}
header{display:grid;grid-template-columns:1fr auto;gap:20px 28px;align-items:center;margin-bottom:20px}
header .facts{color:var(--soft);margin:.5rem 0 0}
.badge{display:flex;align-items:center;gap:14px;padding:14px 26px 14px 18px;border-radius:999px;color:#fff;font-size:1.5rem;
font-weight:700;line-height:1.1;white-space:nowrap}
.badge svg{width:40px;height:40px;flex:none}
.badge.pass,.strip .ok,.m.ok{background:var(--pass)}.badge.fail,.strip .fail,.m.fail{background:var(--fail)}
.badge.override,.strip .warn,.m.warn{background:var(--warn)}.badge.none,.m.skip{background:var(--none)}
.note{border-left:5px solid var(--none);padding:12px 18px;background:var(--card);border-radius:0 12px 12px 0;margin:0 0 20px}
.note.fail{border-color:var(--fail)}.note.override{border-color:var(--warn)}.note ul{margin:.3rem 0 0;padding-left:1.2rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:20px}
.tile-box{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px}
.tile-box b{display:block;font-size:1.45rem;line-height:1.25;letter-spacing:-.01em}
.tile-box span{color:var(--soft);font-size:.83rem}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px 24px 22px;margin-bottom:20px}
.two{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:0 20px}.two>section{min-width:0}
svg{display:block}svg text{fill:var(--ink);font-size:12px}.axis text{fill:var(--soft);font-size:11px}
.axis .tick{stroke:var(--soft);stroke-width:1}.track{fill:var(--track)}
.row{display:grid;grid-template-columns:8.2rem minmax(0,1fr) 6.2rem;gap:0 14px;align-items:center;margin:5px 0}
.row .v{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.row.dim .v{color:var(--soft)}
.bar .cached{opacity:.45}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}.s5{fill:var(--s5)}
.s6{fill:var(--s6)}.s7{fill:var(--s7)}.s8{fill:var(--s8)}.s9{fill:var(--s9)}
i.s0{background:var(--s0)}i.s1{background:var(--s1)}i.s2{background:var(--s2)}i.s3{background:var(--s3)}
i.s4{background:var(--s4)}
i.s5{background:var(--s5)}i.s6{background:var(--s6)}i.s7{background:var(--s7)}i.s8{background:var(--s8)}
i.s9{background:var(--s9)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;padding:0;margin:.6rem 0 0;color:var(--soft);font-size:.85rem}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.gauges{display:flex;flex-wrap:wrap;gap:12px 36px}.gauge-box{width:190px;text-align:center}
.gauge{width:170px;margin:0 auto}.gauge path{fill:none;stroke-width:13}.gauge .track{stroke:var(--track)}
.gauge .fill{stroke:var(--accent)}.gauge .mark{stroke:var(--ink);stroke-width:19}.gauge text{font-size:25px;font-weight:700}
.gauge-box b{display:block}.up{color:var(--pass);font-weight:600}.down{color:var(--fail);font-weight:600}
.tree{border-radius:8px;overflow:hidden}.tree rect{stroke:var(--card);stroke-width:2}.tree .name{fill:#fff;font-weight:600}
.tree .count{fill:#fff;opacity:.85}.tile{overflow:hidden}
.strip{display:flex;flex-wrap:wrap;gap:3px;margin:2px 0}.strip i{width:16px;height:16px;border-radius:4px}
.m{display:inline-flex;width:22px;height:22px;border-radius:50%;color:#fff;align-items:center;justify-content:center;
font-size:13px;font-weight:700;flex:none}
table{border-collapse:collapse;width:100%}th{text-align:left;font-size:.8rem;color:var(--soft);font-weight:600}
th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}tr:last-child td{border-bottom:0}
.probes{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:14px 22px}.probe{display:flex;gap:12px}
.probe>div{min-width:0}.probe p{margin:0;color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}
.probe details{margin:.2rem 0 0;font-size:.86rem}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td.c,th.c{text-align:center;width:5.5rem}
td.c .m{vertical-align:middle}td p{margin:.1rem 0;color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}
tr.g td{padding-top:16px;color:var(--soft);font-weight:600;font-size:.8rem;text-transform:uppercase;letter-spacing:.05em}
details{margin-top:.8rem}summary{cursor:pointer;color:var(--accent);font-weight:600}
details[open]>summary{margin-bottom:.5rem}
dl{display:grid;grid-template-columns:minmax(7rem,auto) minmax(0,1fr);gap:5px 18px;margin:0}dt{color:var(--soft)}
dd{margin:0;min-width:0}
figure{margin:0}figure img{display:block;max-width:100%;height:auto;border-radius:8px;background:#000}
figcaption{color:var(--soft);font-size:.85rem;margin-top:6px}
.shots{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:16px}
.chips{display:flex;flex-wrap:wrap;gap:6px;margin:4px 0}
.chips span{background:var(--chip);border-radius:7px;padding:1px 9px;font-size:.86rem}
.big{display:flex;flex-wrap:wrap;gap:4px 30px;margin-bottom:4px}.big b{font-size:1.5rem;margin-right:6px}
footer{color:var(--soft);font-size:.85rem;text-align:center}
@media (max-width:760px){main{padding:16px 12px 32px}header{grid-template-columns:1fr}
.badge{justify-self:start;font-size:1.25rem;
padding:10px 22px 10px 12px}.badge svg{width:32px;height:32px}h1{font-size:1.6rem}section{padding:16px 14px 18px}
.two{grid-template-columns:1fr}.row{grid-template-columns:5.6rem minmax(0,1fr) 5rem;gap:0 8px;font-size:.88rem}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile-box{padding:9px 12px}.tile-box b{font-size:1.15rem}
.tile.narrow text{display:none}td.c,th.c{width:3.6rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}
.gauges{justify-content:center}.shots{grid-template-columns:1fr}}
@media print{body{background:#fff;font-size:11px}main{max-width:none;padding:0}
section,.tile-box{border-color:#ccc;break-inside:avoid}
section.long{break-inside:auto}tr,.row,figure{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
