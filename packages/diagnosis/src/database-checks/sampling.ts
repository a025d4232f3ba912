const pageBytes = 8192;

/** SQL of a sample of a table: all of it up to `pages` pages, of a larger one as many at random. Reads no more than that. */
export function somePages(table: string, pages = 192): string {
  return `${table} TABLESAMPLE SYSTEM ((SELECT least(100, 100.0 * ${pages * pageBytes} / greatest(pg_relation_size('${table}'), 1))))`;
}

/**
 * SQL of a query: each build that ever wrote a row of a table, and when it last did (writer_build, last_at). Reads two entries of an index on
 * (writer_build, writtenAt) per build, however many rows there are.
 */
export function writersOf(table: string, writtenAt: string): string {
  return `(WITH RECURSIVE builds AS (
      (SELECT writer_build FROM ${table} WHERE writer_build IS NOT NULL ORDER BY writer_build LIMIT 1)
      UNION ALL
      SELECT next.writer_build FROM builds CROSS JOIN LATERAL (
        SELECT t.writer_build FROM ${table} t WHERE t.writer_build > builds.writer_build ORDER BY t.writer_build LIMIT 1) AS next)
    SELECT writer_build, (SELECT max(t.${writtenAt}) FROM ${table} t WHERE t.writer_build = builds.writer_build) AS last_at FROM builds)`;
}

/**
 * SQL of a query: the newest rows of each of the five builds that wrote last, wherever PostgreSQL put them. What a build does wrong is seen
 * however few rows it writes. Reads no more than those, by the index that `writersOf` needs.
 */
export function newestRows(table: string, writtenAt: string, columns: string, perBuild = 200): string {
  return `(SELECT newest.* FROM (SELECT * FROM ${writersOf(table, writtenAt)} AS every_writer ORDER BY last_at DESC LIMIT 5) AS writers
      CROSS JOIN LATERAL (SELECT ${columns} FROM ${table} WHERE ${table}.writer_build = writers.writer_build
                           ORDER BY ${table}.${writtenAt} DESC LIMIT ${perBuild}) AS newest)`;
}

/**
 * SQL of a query: up to `limit` rows, each once by the columns of `key`: all of `newest`, and as many of `some` as there is room for, chosen at
 * random. What a table was given long ago is looked at, too, however large it has become.
 */
export function newestAndSome(rows: {
  /** Both are queries of these columns. */
  readonly columns: string;
  readonly newest: string;
  readonly some: string;
  readonly key: string;
  readonly limit: number;
}): string {
  const { columns, newest, some, key, limit } = rows;
  return `(SELECT ${columns} FROM (
      SELECT DISTINCT ON (${key}) * FROM (SELECT 1 AS turn, ${columns} FROM (${newest}) AS newest
                                UNION ALL SELECT 2, ${columns} FROM (${some}) AS others) AS found ORDER BY ${key}, turn) AS each_once
     ORDER BY turn, random() LIMIT ${limit})`;
}
