import { execFile } from 'node:child_process';

/** How long the command may take, in ms. */
const longestMs = 10_000;

/**
 * Tokens of throw-away devices, asked for once each, from a command of the operator's, which gets user and device as its last two arguments and prints a token. It is
 * given to the shell, so that it may have arguments of its own. Throws without what it printed, which may be a secret.
 */
export function tokenCommand(command: string): (user: string, device: string) => Promise<string> {
  const known = new Map<string, Promise<string>>();
  return (user, device) => {
    const name = `${user} ${device}`;
    const token = known.get(name) ?? ask(command, user, device);
    known.set(name, token);
    return token;
  };
}

function ask(command: string, user: string, device: string): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile('/bin/sh', ['-c', `${command} "$@"`, 'sh', user, device], { timeout: longestMs }, (error, stdout) => {
      const token = stdout.trim();
      if (error) reject(new Error(`the token command ended with ${error.code ?? error.signal ?? 'an error'}`));
      else if (!/^[\x21-\x7e]+$/.test(token)) reject(new Error('the token command did not print one token'));
      else resolve(token);
    });
  });
}
