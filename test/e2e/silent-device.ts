import { createClient } from '@keytrail/client';
import { createNodeTransports, nodePrimitives } from '@keytrail/client/node';

/**
 * A device in a process of its own, which tests can kill: registers, makes a group with the members, attaches, and then does nothing that it is
 * asked for. Says `ready` with the conversation's id.
 */
interface Plan {
  readonly user: string;
  readonly device: string;
  readonly token: string;
  readonly members: readonly string[];
  readonly targets: Parameters<typeof createNodeTransports>[0]['targets'];
}

const { user, device, token, members, targets } = JSON.parse(process.env.KEYTRAIL_SILENT_DEVICE ?? '') as Plan;
const transports = createNodeTransports({ targets, token: () => token });
const client = createClient({ user, device, transports, primitives: nodePrimitives, autoRotate: false });
await client.register();
const { conversationId } = await client.createConversation({ kind: 'group', members });
await client.attach();
process.stdout.write(`${JSON.stringify({ event: 'ready', conversationId })}\n`);
