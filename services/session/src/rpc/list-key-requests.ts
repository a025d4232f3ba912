import { KeyRequestRole, SessionService } from '@keytrail/contracts';
import { deviceCaller, invalidField, type Rpc, unary } from '@keytrail/rpc';
import type { KeyRequest } from '../domain/key-request.ts';
import type { Parts } from '../parts.ts';
import { type ListedOffer, listOfferedKeyRequests, type OfferPageStart } from '../store/key-requests.ts';
import { firstPage, listOwnKeyRequests, type PageStart } from '../store/list-key-requests.ts';
import { keyRequestMessage } from './messages.ts';

const defaultPageSize = 50;

/** The calling device's own requests, oldest first; or those that are offered to it now, in the order in which they are best seen to. */
export function listKeyRequests({ db, prisma }: Pick<Parts, 'db' | 'prisma'>): Rpc {
  return unary(SessionService.method.listKeyRequests, {
    allow: ['device'],
    async handle({ role, includeEnded, page }, call) {
      const device = deviceCaller(call);
      const size = page?.size || defaultPageSize;
      const token = page?.token ?? '';
      const found: (KeyRequest & { readonly turn?: number })[] =
        role === KeyRequestRole.HOLDER
          ? await listOfferedKeyRequests(db, device, readOfferToken(token), size + 1)
          : await listOwnKeyRequests(prisma, device, { after: readToken(token), size: size + 1, includeEnded });
      const shown = found.slice(0, size);
      const last = shown.at(-1);
      return {
        keyRequests: shown.map(keyRequestMessage),
        nextToken:
          found.length > size && last
            ? last.turn === undefined
              ? writeToken(last)
              : writeOfferToken({ ...last, turn: last.turn })
            : '',
      };
    },
  });
}

export function writeToken({ requestedAt, keyRequestId }: KeyRequest): string {
  return Buffer.from(`${requestedAt.getTime()} ${keyRequestId}`).toString('base64url');
}

const tokenForm = /^(\d{1,13}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

export function readToken(token: string): PageStart {
  if (token === '') return firstPage;
  const parts = tokenForm.exec(Buffer.from(token, 'base64url').toString());
  if (!parts) throw invalidField('page.token', 'must be next_token of the page before');
  return { requestedAt: new Date(Number(parts[1])), keyRequestId: parts[2] ?? '' };
}

function writeOfferToken({ turn, priority, ...request }: ListedOffer): string {
  const place = `${turn} ${priority === 'FOREGROUND' ? 'f' : 'b'}`;
  return Buffer.from(`${place} ${request.requestedAt.getTime()} ${request.keyRequestId}`).toString('base64url');
}

const offerTokenForm = /^(\d{1,9}) ([fb]) (\d{1,13}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

function readOfferToken(token: string): OfferPageStart {
  if (token === '') return { turn: 0, background: false, ...firstPage };
  const parts = offerTokenForm.exec(Buffer.from(token, 'base64url').toString());
  if (!parts) throw invalidField('page.token', 'must be next_token of the page before');
  return {
    turn: Number(parts[1]),
    background: parts[2] === 'b',
    requestedAt: new Date(Number(parts[3])),
    keyRequestId: parts[4] ?? '',
  };
}
