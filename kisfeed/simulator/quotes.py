"""What the quote calls answer with: the tapes of the market in KIS's columns, all of them texts."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from kisfeed import seams
from kisfeed.simulator.market import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kisfeed.simulator.market import Market, Tape

INQUIRE_PRICE: Final = "/uapi/domestic-stock/v1/quotations/inquire-price"
MULTI_PRICE: Final = "/uapi/domestic-stock/v1/quotations/intstock-multprice"
DAILY_PRICE: Final = "/uapi/domestic-stock/v1/quotations/inquire-daily-price"
DAILY_CHART: Final = "/uapi/domestic-stock/v1/quotations/inquire-daily-itemchartprice"
STOCK_INFO: Final = "/uapi/domestic-stock/v1/quotations/search-stock-info"
SEARCH_INFO: Final = "/uapi/domestic-stock/v1/quotations/search-info"

TR_IDS: Final[Mapping[str, str]] = {
    INQUIRE_PRICE: "FHKST01010100",
    MULTI_PRICE: "FHKST11300006",
    DAILY_PRICE: "FHKST01010400",
    DAILY_CHART: "FHKST03010100",
    STOCK_INFO: "CTPF1002R",
    SEARCH_INFO: "CTPF1604R",
}
"""The TR id that each path takes."""

NOT_ON_PAPER: Final = frozenset({MULTI_PRICE, STOCK_INFO, SEARCH_INFO})

MOST_SYMBOLS: Final = 30
_VENUES: Final[Mapping[str, str]] = {"J": "krx", "NX": "nxt", "UN": "unified"}
_SHARES: Final = 5_919_637_922
_DAYS: Final = 30
_CHART_DAYS: Final = 100

# The fields of a captured inquire-price (2025-09-16) that the market does not make.
_PRICE_CONSTANTS: Final[Mapping[str, str]] = {
    "iscd_stat_cls_code": "55",
    "marg_rate": "20.00",
    "rprs_mrkt_kor_name": "KOSPI200",
    "new_hgpr_lwpr_cls_code": "",
    "bstp_kor_isnm": "전기·전자",
    "temp_stop_yn": "N",
    "oprc_rang_cont_yn": "N",
    "clpr_rang_cont_yn": "N",
    "crdt_able_yn": "Y",
    "grmn_rate_cls_code": "40",
    "elw_pblc_yn": "Y",
    "prdy_vrss_vol_rate": "29.67",
    "hts_frgn_ehrt": "50.78",
    "frgn_ntby_qty": "0",
    "pgtr_ntby_qty": "1563709",
    "cpfn": "7780",
    "stck_fcam": "100",
    "hts_deal_qty_unit_val": "1",
    "lstn_stcn": "5919637922",
    "per": "15.68",
    "pbr": "1.34",
    "stac_month": "12",
    "vol_tnrt": "0.10",
    "eps": "4950.00",
    "bps": "57930.00",
    "whol_loan_rmnd_rate": "0.17",
    "ssts_yn": "Y",
    "fcam_cnnm": "100",
    "cpfn_cnnm": "7,780 억",
    "frgn_hldn_qty": "3005883104",
    "vi_cls_code": "N",
    "ovtm_vi_cls_code": "N",
    "last_ssts_cntg_qty": "172720",
    "invt_caful_yn": "N",
    "mrkt_warn_cls_code": "00",
    "short_over_yn": "N",
    "sltr_yn": "N",
    "mang_issu_cls_code": "N",
}


class NotFound(Exception):
    """KIS has nothing of this: ``rt_cd`` 7, KIOK0560."""


class Quotes:
    """Answers the quote calls of one market.

    Args:
        market: prices, volumes, the exchange's clock.
        unknown: symbols that nobody lists.
        look: told of a venue and symbol, and when, before its price is read.
    """

    def __init__(
        self, market: Market, unknown: tuple[str, ...], look: Callable[[str, str, float], None]
    ) -> None:
        self._market = market
        self._unknown = frozenset(unknown)
        self._look = look

    def answer(self, path: str, query: Mapping[str, str], now: float) -> dict[str, Any]:
        """The outputs of one call.

        Args:
            path: one of :data:`TR_IDS`.
            query: by upper-case name.
            now: seconds on the scheduler's clock.

        Raises:
            NotFound: no such symbol.
        """
        if path == MULTI_PRICE:
            return {"output": self._several(query, now)}
        symbol = query.get("PDNO" if path in {STOCK_INFO, SEARCH_INFO} else "FID_INPUT_ISCD", "")
        if not symbol or symbol in self._unknown:
            raise NotFound
        if path == SEARCH_INFO:
            return {"output": _search_info(symbol, query)}
        venue = _VENUES.get(query.get("FID_COND_MRKT_DIV_CODE", ""), "krx")
        tape = self._tape(venue, symbol, now)
        if path == STOCK_INFO:
            return {"output": _stock_info(tape, query)}
        if path == INQUIRE_PRICE:
            return {"output": self._price(tape, now)}
        # There are no splits here: adjusted and raw prices are the same.
        if path == DAILY_PRICE:
            return {"output": [_daily_row(day) for day in self._days(tape, now)[:_DAYS]]}
        first, last = query.get("FID_INPUT_DATE_1", ""), query.get("FID_INPUT_DATE_2", "")
        chosen = [day for day in self._days(tape, now) if first <= day["date"] <= last]
        return {
            "output1": self._chart_head(tape, now),
            "output2": [_chart_row(day) for day in chosen[:_CHART_DAYS]],
        }

    def _tape(self, venue: str, symbol: str, now: float) -> Tape:
        self._look(venue, symbol, now)
        return self._market.tape(venue, symbol)

    def _price(self, tape: Tape, now: float) -> dict[str, str]:
        day = f"{self._market.clock.at(now):%Y%m%d}"
        floor = tape.base * 7 // 10
        output = {
            **_PRICE_CONSTANTS,
            "stck_prpr": str(tape.last),
            **_change(tape),
            "acml_tr_pbmn": str(tape.value),
            "acml_vol": str(tape.volume),
            "stck_oprc": str(tape.open),
            "stck_hgpr": str(tape.high),
            "stck_lwpr": str(tape.low),
            "stck_mxpr": str(tape.base * 13 // 10),
            "stck_llam": str(floor),
            "stck_sdpr": str(tape.base),
            "wghn_avrg_stck_prc": f"{tape.value / max(tape.volume, 1):.2f}",
            "rstc_wdth_prc": str(tape.base * 13 // 10 - tape.base),
            "stck_sspr": str(tape.base * 8 // 10),
            "aspr_unit": str(tape.step(tape.last)),
            "hts_avls": str(tape.last * _SHARES // 100_000_000),
            "stck_shrn_iscd": tape.symbol,
        }
        for name in ("pvt_scnd_dmrs_prc", "pvt_frst_dmrs_prc", "pvt_pont_val"):
            output[name] = str(tape.base)
        for name in ("pvt_frst_dmsp_prc", "pvt_scnd_dmsp_prc", "dmrs_val", "dmsp_val"):
            output[name] = str(tape.base)
        for span, rate in (
            ("d250_{}", "vrss_prpr_rate"),
            ("stck_dryy_{}", "vrss_prpr_rate"),
            ("w52_{}", "vrss_prpr_ctrt"),
        ):
            for end, price in (("hgpr", max(tape.high, tape.base)), ("lwpr", floor)):
                name = span.format(end)
                output[name] = str(price)
                name = name.removeprefix("stck_")
                output[f"{name}_{rate}"] = f"{(tape.last - price) * 100 / price:.2f}"
                output[f"{name}_date"] = day
        return output

    def _several(self, query: Mapping[str, str], now: float) -> list[dict[str, str]]:
        rows = []
        for number in range(1, MOST_SYMBOLS + 1):
            symbol = query.get(f"FID_INPUT_ISCD_{number}", "")
            venue = _VENUES.get(query.get(f"FID_COND_MRKT_DIV_CODE_{number}", ""))
            # Only J and NX are documented for this call.
            if symbol and symbol not in self._unknown and venue in {"krx", "nxt"}:
                rows.append(_multi_row(self._tape(venue, symbol, now)))
        return rows

    def _chart_head(self, tape: Tape, now: float) -> dict[str, str]:
        yesterday = self._days(tape, now)[1]
        return {
            **_change(tape),
            "stck_prdy_clpr": str(tape.base),
            "acml_vol": str(tape.volume),
            "acml_tr_pbmn": str(tape.value),
            "hts_kor_isnm": _name(tape.symbol),
            "stck_prpr": str(tape.last),
            "stck_shrn_iscd": tape.symbol,
            "prdy_vol": str(yesterday["volume"]),
            "stck_mxpr": str(tape.base * 13 // 10),
            "stck_llam": str(tape.base * 7 // 10),
            "stck_oprc": str(tape.open),
            "stck_hgpr": str(tape.high),
            "stck_lwpr": str(tape.low),
            "stck_prdy_oprc": str(yesterday["open"]),
            "stck_prdy_hgpr": str(yesterday["high"]),
            "stck_prdy_lwpr": str(yesterday["low"]),
            "askp": str(tape.ask),
            "bidp": str(tape.bid),
            "prdy_vrss_vol": str(tape.volume - yesterday["volume"]),
            "vol_tnrt": "0.10",
            "stck_fcam": "100",
            "lstn_stcn": str(_SHARES),
            "cpfn": "7780",
            "hts_avls": str(tape.last * _SHARES // 100_000_000),
            "per": "15.68",
            "eps": "4950.00",
            "pbr": "1.34",
            "itewhol_loan_rmnd_ratem": "0.17",
        }

    def _days(self, tape: Tape, now: float) -> list[dict[str, Any]]:
        """Today and the weekdays before it, newest first; yesterday closed at today's base."""
        date = self._market.clock.at(now).date()
        found = [
            {
                "date": f"{date:%Y%m%d}",
                "open": tape.open,
                "high": tape.high,
                "low": tape.low,
                "close": tape.last,
                "before": tape.base,
                "volume": tape.volume,
                "value": tape.value,
            }
        ]
        rng = seams.seeded_rng(sum(ord(c) << 8 * n for n, c in enumerate(tape.symbol)))
        close = tape.base
        while len(found) <= 2 * _CHART_DAYS:
            date -= dt.timedelta(days=1)
            if date.weekday() >= 5:
                continue
            opening = close + int((rng.random() - 0.5) * close * 0.02)
            before = opening + int((rng.random() - 0.5) * close * 0.02)
            volume = 10_000 + rng.getrandbits(20)
            found.append(
                {
                    "date": f"{date:%Y%m%d}",
                    "open": opening,
                    "high": max(opening, close) + rng.getrandbits(6),
                    "low": min(opening, close) - rng.getrandbits(6),
                    "close": close,
                    "before": before,
                    "volume": volume,
                    "value": volume * (opening + close) // 2,
                }
            )
            close = before
        return found


def _change(tape: Tape) -> dict[str, str]:
    change = tape.last - tape.base
    return {
        "prdy_vrss": str(change),
        "prdy_vrss_sign": _sign(change),
        "prdy_ctrt": f"{change * 100 / tape.base:.2f}",
    }


def _sign(change: int) -> str:
    return "3" if change == 0 else "2" if change > 0 else "5"


def _name(symbol: str) -> str:
    return NAMES.get(symbol, f"종목{symbol}")


def _multi_row(tape: Tape) -> dict[str, str]:
    # No draw for the sizes: a look at a price leaves the market's future as it was.
    change = _change(tape)
    return {
        "kospi_kosdaq_cls_name": "KOSPI",
        "mrkt_trtm_cls_name": "",
        "hour_cls_code": "0",
        "inter_shrn_iscd": tape.symbol,
        "inter_kor_isnm": _name(tape.symbol),
        "inter2_prpr": str(tape.last),
        "inter2_prdy_vrss": change["prdy_vrss"],
        "prdy_vrss_sign": change["prdy_vrss_sign"],
        "prdy_ctrt": change["prdy_ctrt"],
        "acml_vol": str(tape.volume),
        "inter2_oprc": str(tape.open),
        "inter2_hgpr": str(tape.high),
        "inter2_lwpr": str(tape.low),
        "inter2_llam": str(tape.base * 7 // 10),
        "inter2_mxpr": str(tape.base * 13 // 10),
        "inter2_askp": str(tape.ask),
        "inter2_bidp": str(tape.bid),
        "seln_rsqn": "500",
        "shnu_rsqn": "400",
        "total_askp_rsqn": "5000",
        "total_bidp_rsqn": "4000",
        "acml_tr_pbmn": str(tape.value),
        "inter2_prdy_clpr": str(tape.base),
        "oprc_vrss_hgpr_rate": f"{(tape.high - tape.open) * 100 / max(tape.open, 1):.2f}",
        "intr_antc_cntg_vrss": "0",
        "intr_antc_cntg_vrss_sign": "3",
        "intr_antc_cntg_prdy_ctrt": "0.00",
        "intr_antc_vol": "0",
        "inter2_sdpr": str(tape.base),
    }


def _daily_row(day: Mapping[str, Any]) -> dict[str, str]:
    change = day["close"] - day["before"]
    return {
        "stck_bsop_date": day["date"],
        "stck_oprc": str(day["open"]),
        "stck_hgpr": str(day["high"]),
        "stck_lwpr": str(day["low"]),
        "stck_clpr": str(day["close"]),
        "acml_vol": str(day["volume"]),
        "prdy_vrss_vol_rate": "0.00",
        "prdy_vrss": str(change),
        "prdy_vrss_sign": _sign(change),
        "prdy_ctrt": f"{change * 100 / day['before']:.2f}",
        "hts_frgn_ehrt": "50.78",
        "frgn_ntby_qty": "0",
        "flng_cls_code": "00",
        "acml_prtt_rate": "0.00",
    }


def _chart_row(day: Mapping[str, Any]) -> dict[str, str]:
    change = day["close"] - day["before"]
    return {
        "stck_bsop_date": day["date"],
        "stck_clpr": str(day["close"]),
        "stck_oprc": str(day["open"]),
        "stck_hgpr": str(day["high"]),
        "stck_lwpr": str(day["low"]),
        "acml_vol": str(day["volume"]),
        "acml_tr_pbmn": str(day["value"]),
        "flng_cls_code": "00",
        "prtt_rate": "0.00",
        "mod_yn": "N",
        "prdy_vrss_sign": _sign(change),
        "prdy_vrss": str(change),
        "revl_issu_reas": "",
    }


def _stock_info(tape: Tape, query: Mapping[str, str]) -> dict[str, str]:
    name = _name(tape.symbol)
    etf = name.startswith("KODEX")
    return {
        "pdno": f"{tape.symbol:0>12}",
        "prdt_type_cd": query.get("PRDT_TYPE_CD", "300"),
        "mket_id_cd": "STK",
        "scty_grp_id_cd": "EF" if etf else "ST",
        "excg_dvsn_cd": "02",
        "setl_mmdd": "1231",
        "lstg_stqt": str(_SHARES),
        "lstg_cptl_amt": "0",
        "cpta": "778046685000",
        "papr": "100",
        "issu_pric": "0",
        "kospi200_item_yn": "Y",
        "scts_mket_lstg_dt": "19750611",
        "scts_mket_lstg_abol_dt": "",
        "kosdaq_mket_lstg_dt": "",
        "kosdaq_mket_lstg_abol_dt": "",
        "reits_kind_cd": "",
        "etf_dvsn_cd": "1" if etf else "0",
        "idx_bztp_lcls_cd_name": "시가총액규모대",
        "idx_bztp_mcls_cd_name": "전기·전자",
        "stck_kind_cd": "101",
        "std_pdno": f"KR7{tape.symbol}003",
        "lstg_abol_dt": "",
        "sbst_pric": str(tape.base * 8 // 10),
        "tr_stop_yn": "N",
        "admn_item_yn": "N",
        "thdt_clpr": str(tape.last),
        "bfdy_clpr": str(tape.base),
        "clpr_chng_dt": "",
        "std_idst_clsf_cd_name": "통신 및 방송 장비 제조업",
        "prdt_name": name,
        "prdt_name120": name,
        "prdt_abrv_name": name,
        "prdt_eng_name": tape.symbol,
        "prdt_eng_name120": tape.symbol,
        "prdt_eng_abrv_name": tape.symbol,
        "elec_scty_yn": "Y",
        "frnr_psnl_lmt_rt": "0.00000000",
        "cptt_trad_tr_psbl_yn": "Y",
        "nxt_tr_stop_yn": "N",
    }


def _search_info(symbol: str, query: Mapping[str, str]) -> dict[str, str]:
    name = _name(symbol)
    return {
        "pdno": f"{symbol:0>12}",
        "prdt_type_cd": query.get("PRDT_TYPE_CD", "300"),
        "prdt_name": name,
        "prdt_name120": name,
        "prdt_abrv_name": name,
        "prdt_eng_name": symbol,
        "prdt_eng_name120": symbol,
        "prdt_eng_abrv_name": symbol,
        "std_pdno": f"KR7{symbol}003",
        "shtn_pdno": symbol,
        "prdt_sale_stat_cd": "",
        "prdt_risk_grad_cd": "",
        "prdt_clsf_cd": "101210",
        "prdt_clsf_name": "보통주",
        "sale_strt_dt": "",
        "sale_end_dt": "",
        "wrap_asst_type_cd": "06",
        "ivst_prdt_type_cd": "0601",
        "frst_erlm_dt": "",
    }
