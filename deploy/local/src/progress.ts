/** Says one line on stderr: downloads and installs take long enough for people to wonder. */
export function progress(text: string): void {
  process.stderr.write(`keytrail: ${text}\n`);
}
