import { statement } from '@keytrail/storage';
import { databaseCheck } from '../check.ts';

interface Row {
  readonly consumer: string;
  readonly letters: number;
  readonly newest: Date;
}

/** That no consumer gave an event up. Looks at the newest 10,000. */
export const deadLettersCheck = databaseCheck<Row>({
  code: 'DEAD_LETTERS',
  statement: statement(
    'check_dead_letters',
    `SELECT consumer, count(*)::int AS letters, max(at) AS newest
       FROM (SELECT consumer, at FROM dead_letters ORDER BY id DESC LIMIT 10000) AS kept GROUP BY consumer ORDER BY letters DESC, consumer`,
  ),
  judge(rows) {
    if (rows.length === 0) return { status: 'ok', summary: 'there are no dead letters' };
    const all = rows.reduce((sum, { letters }) => sum + letters, 0);
    const newest = new Date(Math.max(...rows.map((row) => row.newest.getTime())));
    return {
      status: 'warn',
      summary: `${all} dead letters: ${rows.map(({ consumer, letters }) => `${consumer} ${letters}`).join(', ')}`,
      evidence: { deadLetters: all, newest: newest.toISOString() },
      hint: 'keytrail dead-letters list --of <service> shows why; mend the cause, then keytrail dead-letters replay <id> --of <service>',
    };
  },
});
