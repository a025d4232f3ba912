/** Names, notes and facts are indented by depth, so that all bars share one axis; deeper ones stand at the last step. */
export const deepestIndent = 24;

const indents = Array.from(
  { length: deepestIndent + 1 },
  (_, depth) =>
    `.d${depth} .name{padding-left:${depth * 0.9}rem}.d${depth} .note,.d${depth}+.facts{padding-left:${depth * 0.9 + 1.1}rem}`,
).join('');

export const style = `
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5b6470;--line:#d8dde3;--page:#fff;--soft:#f4f6f8;--bar:#4a7bd0;--store:#8a939e;--event:#8b5fbf;--bad:#c0292f;--warn:#9a5b00;--gone:#a0309a;--focus:#0b63ce}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--dim:#9aa4af;--line:#353c45;--page:#14181d;--soft:#1c2229;--bar:#6f9bea;--store:#7d8792;--event:#b08be0;--bad:#ff7b7f;--warn:#e5b567;--gone:#e58be0;--focus:#7ab4ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:1500px;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:1.15rem;margin:0 0 .3rem;overflow-wrap:anywhere}h2{font-size:1rem;margin:1.4rem 0 .4rem}
code,.row,.facts dl,.axis{font-family:ui-monospace,monospace;font-size:12.5px}
p{margin:.2rem 0}.dim{color:var(--dim)}.bad{color:var(--bad);font-weight:600}.warn{color:var(--warn)}.gone{color:var(--gone);font-weight:600}
ul{list-style:none;margin:0;padding:0}section{margin-bottom:1.5rem}
table{border-collapse:collapse}td,th{text-align:left;padding:.1rem 1rem .1rem 0;vertical-align:top;overflow-wrap:anywhere}td p:first-child{margin-top:0}.code{white-space:nowrap}
.row,.axis{display:grid;grid-template-columns:minmax(0,44%) minmax(0,1fr) 6rem 10rem;gap:0 .6rem;align-items:center;padding:.1rem .3rem}
.row{cursor:pointer;list-style:none;border-top:1px solid transparent}.row::-webkit-details-marker{display:none}
.row:hover{background:var(--soft)}.row:focus-visible{outline:2px solid var(--focus);outline-offset:-2px}
.name{overflow-wrap:anywhere}.name::before{content:"";display:inline-block;width:1.1em;color:var(--dim)}
li.hop>details>.row .name::before{content:"▸"}li.hop>details[open]>.row .name::before{content:"▾"}
.service{font-weight:600}.duration{text-align:right}.status{overflow-wrap:anywhere}
.note{grid-column:1/-1}
.bar,.ticks{width:100%;height:12px;display:block;background:var(--soft)}.bar rect{fill:var(--bar)}
.store .bar rect{fill:var(--store)}.publishes .bar rect,.processes .bar rect{fill:var(--event)}.failed .bar rect,.miss .bar rect{fill:var(--bad)}
.axis{color:var(--dim);border-bottom:1px solid var(--line);position:sticky;top:0;background:var(--page)}.axis .scale{display:flex;justify-content:space-between}
.facts{margin:0 .3rem}.facts[open]{margin-bottom:.4rem}.facts summary{color:var(--dim);cursor:pointer;font-size:12px}.facts dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:0 1rem;margin:.2rem 0}.facts dd{margin:0;overflow-wrap:anywhere}.facts dt{color:var(--dim)}
:target>details>.row{background:var(--soft);outline:2px solid var(--focus);outline-offset:-2px}
button{font:inherit;margin-right:.4rem}
.offscreen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
${indents}
@media (max-width:700px){.row,.axis{grid-template-columns:minmax(0,1fr) 5rem 7rem}.bar,.axis .scale{display:none}.missing thead{display:none}.missing td{display:block}}
@media print{body{padding:0;max-width:none;font-size:10px}.row,.facts dl,code{font-size:9px}.axis{position:static}button{display:none}.row{break-inside:avoid}.bar,.bar rect{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
`;
