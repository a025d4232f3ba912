import { fetchTrace, renderTrace } from '@keytrail/traces';

const [url, id] = process.argv.slice(2);
if (url === undefined || id === undefined) {
  console.error(
    'Usage: node docs/examples/trace.ts <URL of the trace store> <trace id>\n\nPrints a trace as a tree of hops.',
  );
  process.exit(64);
}
console.log(renderTrace(await fetchTrace(url, id), { color: process.stdout.isTTY }));
