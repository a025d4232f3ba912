/** Arrow keys over rows, buttons, and everything open on paper. Without it rows still open and close: they are details elements. */
export const script = `
'use strict';
(() => {
  const hops = () => [...document.querySelectorAll('li.hop > details')];
  const rows = () => [...document.querySelectorAll('summary.row')].filter((row) => !row.parentElement.parentElement.closest('details:not([open])'));
  const setAll = (open) => { for (const hop of hops()) hop.open = open; };
  const buttons = document.getElementById('buttons');
  buttons.hidden = false;
  document.getElementById('open-all').addEventListener('click', () => setAll(true));
  document.getElementById('close-all').addEventListener('click', () => setAll(false));
  document.addEventListener('keydown', (event) => {
    const row = document.activeElement;
    if (!row || !row.matches('summary.row') || event.altKey || event.ctrlKey || event.metaKey) return;
    const hop = row.parentElement;
    const shown = rows();
    const at = shown.indexOf(row);
    let next;
    if (event.key === 'ArrowDown') next = shown[at + 1];
    else if (event.key === 'ArrowUp') next = shown[at - 1];
    else if (event.key === 'Home') next = shown[0];
    else if (event.key === 'End') next = shown[shown.length - 1];
    else if (event.key === 'ArrowRight') { if (hop.open) next = shown[at + 1]; else hop.open = true; }
    else if (event.key === 'ArrowLeft') { if (hop.open) hop.open = false; else { const above = hop.parentElement.closest('details'); next = above && above.querySelector(':scope > summary.row'); } }
    else return;
    event.preventDefault();
    if (next) next.focus();
  });
  let closed = [];
  addEventListener('beforeprint', () => { closed = hops().filter((hop) => !hop.open); setAll(true); });
  addEventListener('afterprint', () => { for (const hop of closed) hop.open = false; });
})();
`;
