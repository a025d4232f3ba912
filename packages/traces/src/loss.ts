/** What a backend says that its answer lacks of a trace; most say nothing of that. */
export interface TraceLoss {
  /** Spans that came to the local store and were beyond its bounds. */
  readonly dropped: number;
  /** Grafana Tempo gives of a trace what fits into the longest that it gives, and does not say how much that lacks. */
  readonly partial: boolean;
}

export const noLoss: TraceLoss = { dropped: 0, partial: false };

/** What an answer, or a file of one, says beside its spans. */
export function readLoss(text: string): TraceLoss {
  try {
    const { dropped, status } = JSON.parse(text) as { readonly dropped?: unknown; readonly status?: unknown };
    return { dropped: Number(dropped) || 0, partial: status === 'PARTIAL' };
  } catch {
    // Of several values, one per line, there is none that could say it.
    return noLoss;
  }
}
