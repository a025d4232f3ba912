import { type Backend, BackendRefused, readBackend } from './backend.ts';
import type { TraceSummary } from './memory.ts';

/** The newest traces of a local store, newest first. Throws BackendUnreachable, and BackendRefused where it is no local store. */
export async function listTraces(
  backend: Backend,
  { limit, misses }: { readonly limit: number; readonly misses: boolean },
): Promise<readonly TraceSummary[]> {
  const { status, text } = await readBackend(backend, `traces?limit=${limit}&misses=${misses}`);
  const body = status === 200 ? parse(text) : undefined;
  if (!Array.isArray(body?.traces))
    throw new BackendRefused('it lists no traces: only the local store does (its dialect is keytrail)');
  return body.traces as TraceSummary[];
}

function parse(text: string): { readonly traces?: unknown } | undefined {
  try {
    return JSON.parse(text) as { readonly traces?: unknown };
  } catch {
    return undefined;
  }
}
