import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { ConnectError } from '@connectrpc/connect';
import {
  KeyRequestKindSchema,
  type RequestedKeySchema,
  RequestKeysResponseSchema,
  SessionService,
  type WantedKey as WantedOnWire,
} from '@keytrail/contracts';
import { answerOnce, askedRequest, earlierAnswer } from '@keytrail/idempotency';
import { type Call, deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import { attr, keepTrace, trace } from '@keytrail/telemetry';
import { deviceKey } from '../domain/device.ts';
import type { KeyRequest, KeyRequestKind } from '../domain/key-request.ts';
import { gatherFactsOfMany } from '../miss.ts';
import type { Parts } from '../parts.ts';
import { userErased } from '../refusals.ts';
import { isOfErasedUser } from '../store/erasures.ts';
import {
  isRequest,
  openOrFind,
  outlookOf,
  priorityOf,
  refusalOf,
  sessionKey,
  type WantedKey,
  type WeighedKey,
} from '../wanted-keys.ts';
import { keyRequestMessage, refusedKey } from './messages.ts';

/**
 * Asks for many keys at once: the peers are asked once, and all requests are opened in one transaction. What one key is refused for does not
 * keep back the others; a peer that cannot be asked refuses the call, so that it can be repeated as it is.
 */
export function requestKeys(parts: Parts): Rpc {
  return unary(SessionService.method.requestKeys, {
    allow: ['device'],
    async handle(request, call) {
      keepTrace('keys requested');
      const device = deviceCaller(call);
      const wanted = wantedKeys(request.keys);
      const once = askedRequest(SessionService.method.requestKeys, request, deviceKey(device));
      const facts = await gatherFactsOfMany(parts, wanted, device, call);
      const refusals = new Map<WantedKey, () => ConnectError>();
      const weighed: WeighedKey[] = [];
      for (const [place, key] of wanted.entries()) {
        const known = facts[place];
        if (!known) throw new Error('one key, one set of facts');
        const refused = refusalOf(parts, key, device, known, call);
        if (refused?.whole) {
          const earlier = await earlierAnswer(parts.db, once);
          if (earlier) return earlier;
          throw refused.refusal();
        }
        if (refused) refusals.set(key, refused.refusal);
        else weighed.push({ wanted: key, facts: known });
      }

      const { response } = await answerOnce(parts.db, once, async (tx) => {
        const opened = weighed.length === 0 ? [] : await openOrFind(parts, tx, device, weighed);
        const results = new Map(weighed.map((key, place) => [key.wanted, opened[place]]));
        tx.afterCommit(() =>
          tell(opened.filter((result) => result !== undefined).filter(isRequest), wanted.length, call),
        );
        return create(RequestKeysResponseSchema, {
          results: wanted.map((key) => resultOf(results.get(key) ?? refusals.get(key)?.())),
        });
      }).catch((error: unknown) => {
        throw isOfErasedUser(error) ? userErased(device.userId) : error;
      });
      return response;
    },
  });
}

function wantedKeys(keys: readonly WantedOnWire[]): WantedKey[] {
  const sessions = new Set<string>();
  return keys.map((key, place) => {
    if (sessions.has(sessionKey(key)))
      throw invalidField(`keys[${place}]`, 'must be another session than those before');
    sessions.add(sessionKey(key));
    return {
      conversationId: key.conversationId,
      sessionId: key.sessionId,
      kind: KeyRequestKindSchema.value[key.kind]?.localName as KeyRequestKind,
      priority: priorityOf(key.priority),
    };
  });
}

function resultOf(result: KeyRequest | ConnectError | undefined): MessageInitShape<typeof RequestedKeySchema> {
  if (!result) throw new Error('a key without a result');
  return isRequest(result)
    ? { keyRequest: keyRequestMessage(result), ...outlookOf(result) }
    : { refused: refusedKey(result) };
}

function tell(opened: readonly KeyRequest[], asked: number, call: Call): void {
  trace.getActiveSpan()?.setAttribute(attr.keyRequestsCount, opened.length);
  const states = Map.groupBy(opened, ({ state }) => state);
  call.log.info(
    {
      asked,
      refused: asked - opened.length,
      states: Object.fromEntries([...states].map(([state, requests]) => [state, requests.length])),
    },
    'keys requested',
  );
}
