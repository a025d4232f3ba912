const pageBytes = 8192;

/** SQL of a sample of a table: all of it up to `pages` pages, of a larger one as many at random. Reads no more than that. */
export function somePages(table: string, pages = 192): string {
  return `${table} TABLESAMPLE SYSTEM ((SELECT least(100, 100.0 * ${pages * pageBytes} / greatest(pg_relation_size('${table}'), 1))))`;
}

/** SQL of a condition: rows of the last `pages` pages of a table, where new rows are. A range scan: reads no more than that. */
export function newestPages(table: string, pages = 64): string {
  return `${table}.ctid >= (SELECT format('(%s,0)', greatest(0, pg_relation_size('${table}') / ${pageBytes} - ${pages}))::tid)`;
}
