import { createClient, type KeytrailClient, memoryKeyStore } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';
import type { Constellation } from '../constellation.ts';

/** What a step of the demo has at hand. */
export interface Stage {
  readonly constellation: Constellation;
  /** Makes the SDK of a device, with a token of its own. */
  device(user: string, device: string): KeytrailClient;
  /** One line under the step that runs. */
  say(line: string): void;
  /** Throws with `what` when it is not so: the step fails, and with it the demo. */
  check(what: string, holds: boolean): void;
  /** The first event of this kind, from now on. */
  once<K extends Parameters<KeytrailClient['on']>[0]>(client: KeytrailClient, event: K): Promise<unknown>;
}

/** What later steps need of earlier ones. */
export interface Cast {
  readonly alice: KeytrailClient;
  readonly bob: KeytrailClient;
  readonly bobTablet: KeytrailClient;
  readonly conversationId: string;
  readonly sessionId: string;
}

export function createStage(
  constellation: Constellation,
  say: (line: string) => void,
): Stage & { close(): Promise<void> } {
  const clients: KeytrailClient[] = [];
  return {
    constellation,
    say,
    device(user, device) {
      const client = createClient({
        user,
        device,
        primitives: nodePrimitives,
        keyStore: memoryKeyStore(),
        // The demo asks for its key itself: what a device does in the background has traces of its own.
        recoverHistory: false,
        transports: createNodeTransports({
          targets: {
            identityKeys: constellation.grpcTarget('identity-keys'),
            conversation: constellation.grpcTarget('conversation'),
            session: constellation.grpcTarget('session'),
            presence: constellation.grpcTarget('presence'),
          },
          token: () => constellation.issuer.token({ userId: user, deviceId: device }),
        }),
      });
      clients.push(client);
      return client;
    },
    check(what, holds) {
      if (!holds) throw new Error(`this should be so, and is not: ${what}`);
      say(`✓ ${what}`);
    },
    once: (client, event) =>
      new Promise((resolve) => {
        const off = client.on(event, (value: unknown) => {
          off();
          resolve(value);
        });
      }),
    async close() {
      await Promise.allSettled(clients.map((client) => client.close()));
    },
  };
}
