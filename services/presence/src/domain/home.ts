/** The home of a gateway's ids, 12 hexadecimal digits: an id is `<home>-<generation>`. */
export function homeOfGateway(gatewayId: string): string {
  return gatewayId.slice(0, gatewayId.lastIndexOf('-') < 0 ? undefined : gatewayId.lastIndexOf('-'));
}

/** The random UUID, made to begin with the home of the gateway that holds the connection. */
export function connectionAt(home: string, random: string): string {
  return `${home.slice(0, 8)}-${home.slice(8, 12)}${random.slice(13)}`;
}

export function homeOfConnection(connectionId: string): string {
  return connectionId.slice(0, 13).replace('-', '').toLowerCase();
}
