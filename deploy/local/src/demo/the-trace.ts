import { fetchTrace, renderTrace, type TraceTree } from '@keytrail/traces';
import type { Stage } from './stage.ts';

const expectedServices = ['identity-keys', 'session', 'conversation', 'presence'];

/** The trace of the miss and its cure, as a tree of hops. */
export async function theTrace(stage: Stage, traceId: string): Promise<TraceTree> {
  const tree = await fetchTrace(stage.constellation.traces.url, traceId, {
    until: (current) =>
      current.orphans.length === 0 && expectedServices.every((service) => current.services.includes(service)),
    timeoutMs: 15_000,
  });
  stage.say('');
  for (const line of renderTrace(tree, {
    color: process.stdout.isTTY === true,
    width: process.stdout.columns ?? 140,
  }).split('\n')) {
    stage.say(line);
  }
  const systems = new Set(
    tree.spans.flatMap((span) => [span.attributes['db.system.name'], span.attributes['messaging.system.name']]),
  );
  stage.check(
    'it leads over all four services',
    expectedServices.every((service) => tree.services.includes(service)),
  );
  stage.check(
    'PostgreSQL, Redis and NATS are in it',
    systems.has('postgresql') && systems.has('redis') && systems.has('nats'),
  );
  stage.check(
    'the cause stands at the hop that missed',
    tree.spans.some(
      (span) => span.service === 'session' && span.attributes['keytrail.miss.cause'] === 'DEVICE_ADDED_AFTER_SESSION',
    ),
  );
  stage.check('it is one connected tree without orphans', tree.orphans.length === 0 && tree.roots.length === 1);
  return tree;
}
