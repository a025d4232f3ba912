import { randomUUID } from 'node:crypto';

/** The home of a gateway's ids, 12 hexadecimal digits: an id is `<home>-<generation>`. */
export function homeOfGateway(gatewayId: string): string {
  return gatewayId.slice(0, gatewayId.lastIndexOf('-') < 0 ? undefined : gatewayId.lastIndexOf('-'));
}

/** A random UUID that begins with the home of the gateway that holds the connection. */
export function connectionAt(home: string): string {
  return `${home.slice(0, 8)}-${home.slice(8, 12)}${randomUUID().slice(13)}`;
}

export function homeOfConnection(connectionId: string): string {
  return connectionId.slice(0, 13).replace('-', '').toLowerCase();
}
