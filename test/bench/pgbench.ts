import { globSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './load.ts';
import { findOnPath } from './load-programs.ts';
import { WrongAnswers } from './measurement.ts';

/** The path of pgbench, which comes with PostgreSQL's packages; undefined where PostgreSQL came without it. */
export function findPgbench(): string | undefined {
  const [packaged] = globSync('/usr/lib/postgresql/*/bin/pgbench').sort((a, b) =>
    b.localeCompare(a, 'en', { numeric: true }),
  );
  return packaged ?? findOnPath('pgbench');
}

export interface PgbenchOptions {
  readonly program: string;
  readonly databaseUrl: string;
  /** Before the statement: `\set n random(1, 9)`. */
  readonly variables: readonly string[];
  readonly statement: string;
  /** What stands for $1, $2 … of the statement. */
  readonly parameters: readonly string[];
  readonly clients: number;
  readonly seconds: number;
  readonly folder: string;
}

export interface PgbenchRound {
  readonly clients: number;
  readonly perSecond: number;
  readonly averageMs: number;
}

/** One statement over and over, prepared, by so many clients. Throws WrongAnswers when one fails. */
export async function runPgbench(options: PgbenchOptions): Promise<PgbenchRound> {
  mkdirSync(options.folder, { recursive: true });
  const file = join(options.folder, 'pgbench.sql');
  const text = options.statement.replaceAll(/\$(\d+)/g, (_, number: string) => {
    const value = options.parameters[Number(number) - 1];
    if (value === undefined) throw new Error(`the statement has a parameter $${number} that nothing was given for`);
    return value;
  });
  writeFileSync(file, `${options.variables.join('\n')}\n${text};\n`);
  const said = await run(options.program, [
    '--no-vacuum',
    '--protocol=prepared',
    `--client=${options.clients}`,
    `--jobs=${Math.min(2, options.clients)}`,
    `--time=${options.seconds}`,
    `--file=${file}`,
    options.databaseUrl,
  ]);
  const read = (pattern: RegExp) => Number(pattern.exec(said)?.[1]);
  const failed = read(/number of failed transactions: (\d+)/);
  if (failed > 0) throw new WrongAnswers(`${failed} statements of pgbench failed`);
  // None at all is an answer too: pgbench says then that its rates are no numbers.
  const processed = read(/transactions actually processed: (\d+)/);
  if (Number.isNaN(processed)) throw new WrongAnswers(`pgbench said: ${said}`);
  return {
    clients: options.clients,
    perSecond: processed === 0 ? 0 : read(/^tps = ([\d.]+)/m),
    averageMs: processed === 0 ? options.seconds * 1000 : read(/latency average = ([\d.]+)/),
  };
}
