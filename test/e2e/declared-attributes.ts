import { attributeReference, eventReference, resourceReference } from '@keytrail/telemetry';
import type { TraceSpan } from '@keytrail/traces';

const names = (reference: readonly { readonly name: string }[]) => new Set(reference.map(({ name }) => name));
const declared = { span: names(attributeReference), event: names(eventReference), resource: names(resourceReference) };

/** Throws when a span, a link, an event or a resource that was exported has an attribute that the registry does not declare. */
export function expectDeclared(spans: readonly TraceSpan[], resourceAttributes: Iterable<string> = []): void {
  const undeclared = new Set<string>();
  const look = (kind: keyof typeof declared, found: Iterable<string>, where: string) => {
    for (const name of found) if (!declared[kind].has(name)) undeclared.add(`${name} (${kind} attribute, ${where})`);
  };
  look('resource', resourceAttributes, 'of a process');
  for (const { service, name, attributes, links, events } of spans) {
    const where = `${service} ${name}`;
    look('span', Object.keys(attributes), where);
    for (const link of links) look('span', Object.keys(link.attributes), where);
    for (const event of events) look('event', Object.keys(event.attributes), where);
  }
  if (undeclared.size > 0)
    throw new Error(`not declared in packages/telemetry/src/attributes.ts: ${[...undeclared].sort().join('; ')}`);
}

/** Every span that a trace store still has of its newest thousand traces. */
export async function spansIn(store: { readonly url: string }): Promise<TraceSpan[]> {
  const read = async (path: string) => (await fetch(`${store.url}${path}`)).json();
  const { traces } = (await read('/traces?limit=1000')) as { traces: { id: string }[] };
  const found: TraceSpan[] = [];
  for (const { id } of traces) {
    const { spans = [] } = (await read(`/traces/${id}`)) as { spans?: TraceSpan[] };
    found.push(...spans);
  }
  return found;
}
