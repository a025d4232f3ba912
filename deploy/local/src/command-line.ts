import { type ParseArgsConfig, parseArgs } from 'node:util';

/** Reads the command line; an option that is not known prints the problem and the help, and exits with 2. */
export function readCommandLine<C extends ParseArgsConfig>(help: string, config: C): ReturnType<typeof parseArgs<C>> {
  try {
    return parseArgs(config);
  } catch (error) {
    console.error(`${(error as Error).message}\n\n${help}`);
    process.exit(2);
  }
}
