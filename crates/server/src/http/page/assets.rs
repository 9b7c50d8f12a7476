//! What pages load: one style, one script, one picture; in the program itself.

use crate::http::api::Made;
use crate::http::{Answer, Api, Asked};

pub fn style(_: &Api, _: &Asked<'_>) -> Made {
    Ok(Answer::Asset("text/css; charset=utf-8", include_str!("assets/app.css")))
}

pub fn script(_: &Api, _: &Asked<'_>) -> Made {
    Ok(Answer::Asset("text/javascript; charset=utf-8", include_str!("assets/app.js")))
}

pub fn icon(_: &Api, _: &Asked<'_>) -> Made {
    Ok(Answer::Asset("image/svg+xml", include_str!("assets/icon.svg")))
}
