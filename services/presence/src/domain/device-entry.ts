/** What Redis keeps for an attached device: which gateway holds its stream, under which connection. */
export interface DeviceEntry {
  readonly counter: bigint;
  readonly gatewayId: string;
  readonly connectionId: string;
  readonly attachedAtMs: number;
}

/** The counter stands first: the attach script compares it without parsing the rest. */
export function formatDeviceEntry(entry: DeviceEntry): string {
  return `${entry.counter}|${entry.gatewayId}|${entry.connectionId}|${entry.attachedAtMs}`;
}

/** Undefined for text that is no entry: a foreign value in Redis makes a device offline, and never throws. */
export function parseDeviceEntry(text: string): DeviceEntry | undefined {
  const [counter, gatewayId, connectionId, attachedAtMs] = text.split('|');
  if (!counter || !/^\d{1,20}$/.test(counter) || !gatewayId || !connectionId || !/^\d+$/.test(attachedAtMs ?? ''))
    return undefined;
  return { counter: BigInt(counter), gatewayId, connectionId, attachedAtMs: Number(attachedAtMs) };
}
